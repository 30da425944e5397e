"use strict";
// The viewer: task, row of the table, example and t are chosen; everything it draws is in the page.
(() => {
  const scenes = JSON.parse(document.getElementById("scenes").textContent);
  const $ = (id) => document.getElementById(id);
  if (!scenes.length) return;

  const times = scenes[0].times; // the same for all scenes
  const last = times.length - 1;
  let scene = scenes[0];
  let example = 0;
  let frame = times.indexOf(scene.chosen);
  let timer = null;
  let paused = false; // play goes on from here instead of from t = 0

  // A sheet has a column for each example; originals in row 0, then a row for each frame.
  const paint = (canvas, column, row, label) => {
    const side = scene.side;
    canvas.width = canvas.height = side;
    canvas.getContext("2d").drawImage(scene.image, column * side, row * side, side, side, 0, 0, side, side);
    if (label) canvas.setAttribute("aria-label", label);
  };

  const draw = () => {
    const t = times[frame];
    const error = scene.errors[example][frame];
    const count = scene.images.toLocaleString("en");
    const when = `t = ${t}${t === scene.chosen ? ", chosen on validation images" : t ? "" : ", the corrupted image"}`;
    paint($("original"), example, 0, `test image ${example}, original`);
    paint($("corrupted"), example, 1, `test image ${example}, corrupted`);
    paint($("state"), example, frame + 1, `test image ${example}, state at t = ${t}`);
    for (const [column, label] of [...$("examples").querySelectorAll("label")].entries()) {
      paint(label.querySelector("canvas"), column, frame + 1);
      label.querySelector("small").textContent = scene.errors[column][frame].toFixed(4);
    }
    $("now").textContent = t;
    $("slider").value = frame;
    $("slider").setAttribute("aria-valuetext", `t = ${t}`);
    $("said").textContent =
      `${when}: error of this image ${error.toFixed(4)}, mean of ${count} test images ${scene.mean[frame].toFixed(4)}`;
    $("best").textContent = `t = ${scene.chosen}, chosen`;
    $("how").textContent = `${scene.task}, ${scene.row}: ${scene.how}`;
    chart();
  };

  // Error against t. The axis is linear from 0 to 1, then logarithmic, so that t = 0 has a place on it.
  const margin = { left: 48, right: 12, top: 18, bottom: 36 };
  const place = (t) => (t <= 1 ? t : 1 + Math.log10(t)) / (1 + Math.log10(Math.max(times[last], 2)));
  const across = (t) => margin.left + place(t) * ($("chart").clientWidth - margin.left - margin.right);
  const chart = () => {
    const svg = $("chart");
    const add = (tag, attributes, text) => {
      const node = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      if (text !== undefined) node.textContent = text;
      return node;
    };
    const [width, height] = [svg.clientWidth, svg.clientHeight];
    const [right, bottom] = [width - margin.right, height - margin.bottom];
    const errors = scene.errors[example];
    const top = 1.05 * Math.max(...errors, ...scene.mean, 1e-6);
    const down = (error) => bottom - (error / top) * (bottom - margin.top);
    const line = (values) => values.map((error, i) => `${across(times[i])},${down(error)}`).join(" ");
    svg.replaceChildren();
    svg.setAttribute("aria-label", `error against t of test image ${example} and mean over the test images`);
    add("line", { class: "axis", x1: margin.left, x2: right, y1: bottom, y2: bottom });
    add("line", { class: "axis", x1: margin.left, x2: margin.left, y1: bottom, y2: margin.top });
    for (const t of [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter((t) => t <= times[last])) {
      add("line", { class: "axis", x1: across(t), x2: across(t), y1: bottom, y2: bottom + 4 });
      add("text", { x: across(t), y: bottom + 17, "text-anchor": "middle" }, t);
    }
    const step = 10 ** Math.floor(Math.log10(top));
    const tick = top / step > 5 ? 2 * step : top / step > 2 ? step : step / 2;
    for (let error = 0; error < top; error += tick) {
      add("line", { class: "axis", x1: margin.left - 4, x2: margin.left, y1: down(error), y2: down(error) });
      const text = error.toFixed(tick < 0.01 ? 3 : 2);
      add("text", { x: margin.left - 7, y: down(error) + 4, "text-anchor": "end" }, text);
    }
    add("text", { x: right, y: height - 3, "text-anchor": "end" }, "iteration t");
    add("text", { x: 0, y: 12 }, "error, pixel²");
    const chosen = across(scene.chosen);
    add("line", { class: "chosen", x1: chosen, x2: chosen, y1: bottom, y2: margin.top });
    add("line", { class: "cursor", x1: across(times[frame]), x2: across(times[frame]), y1: bottom, y2: margin.top });
    add("polyline", { class: "mean", points: line(scene.mean) });
    add("polyline", { class: "one", points: line(errors) });
    add("circle", { cx: across(times[frame]), cy: down(errors[frame]), r: 4.5 });
  };

  const stop = () => {
    clearTimeout(timer);
    timer = null;
    $("play").textContent = "Play";
  };
  const go = (to) => {
    frame = Math.max(0, Math.min(last, to));
    draw();
  };
  const tick = () => {
    if (frame === last) {
      paused = false;
      return stop();
    }
    go(frame + 1);
    timer = setTimeout(tick, Math.max(50, 500 / (1 + times[frame] / 6))); // slow where most happens
  };
  const play = () => {
    if (timer !== null) {
      paused = true;
      return stop();
    }
    $("play").textContent = "Pause";
    if (!paused || frame === last) go(0);
    timer = setTimeout(tick, 700);
  };

  const choose = async (chosen) => {
    scene = chosen;
    await scene.image.decode();
    draw();
  };
  const listRows = (task) => {
    const rows = scenes.filter((one) => one.task === task);
    $("row").replaceChildren(...rows.map((one) => new Option(one.row, scenes.indexOf(one))));
    $("rows").hidden = rows.length < 2;
    // the same row as before, where the task has it
    const same = rows.find((one) => one.row === scene.row) ?? rows[0];
    $("row").value = scenes.indexOf(same);
    return choose(same);
  };
  const radio = (group, name, checked, content, pick) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name, checked });
    input.addEventListener("change", pick);
    label.append(input, ...content);
    group.append(label);
    return input;
  };

  for (const one of scenes) {
    one.image = new Image();
    one.image.src = one.sheet;
  }
  for (const task of new Set(scenes.map((one) => one.task))) {
    const text = Object.assign(document.createElement("span"), { textContent: task });
    radio($("tasks"), "task", task === scene.task, [text], () => listRows(task));
  }
  scene.errors.forEach((_, index) => {
    const pick = () => {
      example = index;
      draw();
    };
    const content = [document.createElement("canvas"), document.createElement("small")];
    radio($("examples"), "example", index === 0, content, pick).ariaLabel = `test image ${index}`;
  });
  $("row").addEventListener("change", () => choose(scenes[$("row").value]));
  $("slider").max = last;
  $("slider").addEventListener("input", () => {
    stop();
    paused = true;
    go(Number($("slider").value));
  });
  $("best").addEventListener("click", () => {
    stop();
    go(times.indexOf(scene.chosen));
  });
  $("play").addEventListener("click", play);
  const scrub = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const x = event.clientX - $("chart").getBoundingClientRect().left;
    const distances = times.map((t) => Math.abs(across(t) - x));
    stop();
    paused = true;
    go(distances.indexOf(Math.min(...distances)));
  };
  $("chart").addEventListener("pointerdown", scrub);
  $("chart").addEventListener("pointermove", scrub);
  $("viewer").hidden = false;
  new ResizeObserver(() => chart()).observe($("chart"));
  listRows(scene.task);
})();
