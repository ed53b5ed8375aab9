"""From text to batches: documents, split, token cache, packing, masking, and tokenizers.

Nothing is imported here, so that what only counts documents never loads torch. What the training loop uses:

    apr_train.run.corpus_settings     CorpusSettings(data, validation_fraction)
    apr_train.data.corpus       load_corpus(settings, tokenizer, *, cache_dir, progress, notice) -> Corpus
                                held_out_documents(settings, *, limit) -> list[Document]
    apr_train.data.tokens       TokenFile: memory-mapped ids of one side of the split, with document starts
    apr_train.data.stream       BatchStream(tokens, *, objective, sequence_length, batch_size, seed, document_mask,
                                tokenizer, mask_probability, on_epoch): next_batch(), state_dict(), load_state_dict()
                                validation_batches(tokens, *, objective, sequence_length, batch_size, document_mask,
                                tokenizer, mask_probability, max_rows) -> Iterator[Batch]
    apr_train.data.batch        Batch(tokens, targets, document_ids, document_lengths, keep, target_count)
    apr_train.data.bpe          train_bpe(settings, vocabulary_size, *, encoder, cache_dir, notice) -> TokenizerSpec
    apr_train.data.tokenizer    build_tokenizer(spec) -> Tokenizer
"""
