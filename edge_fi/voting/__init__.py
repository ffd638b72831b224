"""From votes to one distribution: opinion pools, and the strategies that weigh them."""
