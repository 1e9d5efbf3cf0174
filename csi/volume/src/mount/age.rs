//! How old the oldest change is that is not durable yet: what an operator would lose if the machine were gone now.
//!
//! Caller: `mount.rs`. The time is the process's own, and decides nothing.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::Generation;

/// When what is dirty became so.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// The first change since the last cut.
    open: Option<Instant>,
    /// The first change of each generation that was cut and is not durable.
    sealed: VecDeque<(Generation, Instant)>,
}

impl Ages {
    /// Something changed.
    pub fn dirtied(&mut self) {
        self.open.get_or_insert_with(Instant::now);
    }

    /// What changed so far is of this generation.
    pub fn sealed(&mut self, generation: Generation) {
        let since = self.open.take().unwrap_or_else(Instant::now);
        self.sealed.push_back((generation, since));
    }

    /// Everything up to this generation is durable; `clean` if nothing else is dirty.
    pub fn durable(&mut self, generation: Generation, clean: bool) {
        while self.sealed.front().is_some_and(|(sealed, _)| *sealed <= generation) {
            self.sealed.pop_front();
        }
        if clean {
            self.open = None;
        }
    }

    /// How long the oldest change has been waiting.
    pub fn oldest(&self) -> Option<Duration> {
        let oldest = self.sealed.front().map(|(_, since)| *since).or(self.open);
        oldest.map(|since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_change_that_is_not_durable_is_told() {
        let mut ages = Ages::default();
        let second = Duration::from_secs(1);
        assert_eq!(ages.oldest(), None);
        for generation in 1..=2 {
            ages.dirtied();
            tokio::time::advance(second).await;
            ages.dirtied();
            ages.sealed(Generation(generation));
        }
        ages.dirtied();
        assert_eq!(ages.oldest(), Some(2 * second));
        ages.durable(Generation(1), false);
        assert_eq!(ages.oldest(), Some(second));
        ages.durable(Generation(2), false);
        assert_eq!(ages.oldest(), Some(Duration::ZERO));
        ages.durable(Generation(2), true);
        assert_eq!(ages.oldest(), None);
    }
}
