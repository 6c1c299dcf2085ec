"""Everything on one machine: the processes, the embedded queue, the demo."""
