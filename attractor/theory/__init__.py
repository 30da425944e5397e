"""What attention is, said four ways, each as code that a test holds against an independent oracle."""
