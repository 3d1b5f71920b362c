"""The file to ship: every honest candidate made and measured on one device, laid side by side."""
