"""Language models in use, without a framework: chat templates, generation, conversation, scores."""
