//! Models of the hand-over between senders, the reader, the writer and the application of one link.
