"""What people look at: terminal text, figures, report.html."""
