//! Rows of a range, a page at a time.

use std::collections::VecDeque;

use crate::row::{Key, Row};
use crate::tree::{Tree, TreeError};

/// 1,000 rows in RAM at a time for each cursor.
const PAGE_ROWS: usize = 1_000;

/// Reads rows in order.
pub(super) struct Cursor<'a> {
    tree: &'a dyn Tree,
    /// The last key of the page; the next one begins with it.
    last: Key,
    skip_last: bool,
    until: Key,
    page: VecDeque<(Key, Row)>,
    ended: bool,
}

impl<'a> Cursor<'a> {
    /// Rows with `from <= key < until`.
    pub fn new(tree: &'a dyn Tree, from: Key, until: Key) -> Self {
        Self {
            tree,
            last: from,
            skip_last: false,
            until,
            page: VecDeque::new(),
            ended: false,
        }
    }

    /// The next row, without going past it.
    pub async fn peek(&mut self) -> Result<Option<&(Key, Row)>, TreeError> {
        while self.page.is_empty() && !self.ended {
            let rows = self.tree.scan(&self.last, &self.until, PAGE_ROWS).await?;
            self.ended = rows.len() < PAGE_ROWS;
            self.page = rows.into();
            if self.skip_last && self.page.front().is_some_and(|(key, _)| *key == self.last) {
                self.page.pop_front();
            }
            if let Some((key, _)) = self.page.back() {
                self.last = key.clone();
                self.skip_last = true;
            }
        }
        Ok(self.page.front())
    }

    /// The next row.
    pub async fn next(&mut self) -> Result<Option<(Key, Row)>, TreeError> {
        self.peek().await?;
        Ok(self.page.pop_front())
    }

    /// The next row, if `belongs` says so of its key.
    pub async fn next_if(&mut self, belongs: impl Fn(&Key) -> bool) -> Result<Option<(Key, Row)>, TreeError> {
        match self.peek().await? {
            Some((key, _)) if belongs(key) => Ok(self.page.pop_front()),
            Some(_) | None => Ok(None),
        }
    }
}
