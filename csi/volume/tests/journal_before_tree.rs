//! Goal: the journal comes before the tree. Whatever request a writer dies at, before or after its effect, the next
//! mount finds exactly a prefix of what was done, at or past what was acknowledged; and an older writer gets no
//! acknowledgement that the newer one does not know. Method: the real commit loop and SlateDB over a bucket that delays,
//! lies and dies by a seed, with a small model of a file system that knows its history.

#[cfg(test)]
#[path = "journal_before_tree/commits.rs"]
mod commits;
#[cfg(test)]
#[path = "journal_before_tree/faulty.rs"]
mod faulty;
#[cfg(test)]
#[path = "journal_before_tree/lives.rs"]
mod lives;
#[cfg(test)]
#[path = "journal_before_tree/model.rs"]
mod model;
