"""LiteRT.js, the runtime of web pages, in a headless Chromium on this machine."""
