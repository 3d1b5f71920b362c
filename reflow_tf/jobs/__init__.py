"""What a command does, one module or package a command: it leads the stages of the house and writes what they gave."""
