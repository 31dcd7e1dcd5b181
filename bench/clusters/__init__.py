"""Parts of the scenario `cluster`, and the processes that they measure."""
