"""Texts and chats of language models: read or written by a teacher, tokenised, packed."""
