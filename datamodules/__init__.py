"""One file per LightningDataModule, and the pure readers they stand on.

Text is read by language_modeling (from text_sources, kept by token_cache), conversations by
instruction (from conversations, kept in blocks by packing), pairs of images and texts by
cross_modal (from feature_files or picture_folders), dialogues by multi_turn_sql (from
dialogue_sources). All share files, hub, cache, settings and batches; `generated` makes data here.
"""
