"""What a plan's launches will take on a GPU, from the compiler's code and the emulator's accesses."""
