"""Fine-tuning and evaluation on labelled texts: tasks, readers, rows, classifier, training, search."""
