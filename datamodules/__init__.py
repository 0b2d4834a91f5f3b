"""One file per LightningDataModule, and the pure readers they stand on."""
