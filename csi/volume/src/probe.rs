//! Proof by trial that a store's conditional puts decide races. Volumes are only created on stores that pass.
//!
//! Some stores ignore the conditions and answer 200 to everyone; others check them and then write in two steps, so that
//! two racers both win. On either, two nodes could write one volume and both be told that their data is safe. No
//! document of a vendor replaces the trial. Nothing stays behind. Absent: the rest of the port (see `bucket/contract.rs`).

use bytes::Bytes;
use futures::future::join_all;
use uuid::Uuid;

use crate::bucket::{BucketError, BucketRef, ETag};

/// How hard to try.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// Races run one after another.
    pub rounds: u32,
    /// Writers in each race.
    pub racers: u32,
}

impl Default for Trial {
    /// 4 rounds of 8: some 90 requests, a quarter of a second at 20 ms each. A store without atomicity lost the first
    /// round whenever it was tried; the others are for luck.
    fn default() -> Self {
        Self { rounds: 4, racers: 8 }
    }
}

/// Why no volume may be kept in a store.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its conditional puts do not hold.
    #[error("the store cannot keep volumes: {verb} must let exactly one of {racers} writers win, but {seen}")]
    Unfit {
        /// The conditional put that failed, in S3's words.
        verb: &'static str,
        /// How many writers there were.
        racers: u32,
        /// What was seen.
        seen: String,
    },
    /// The trial could not be carried out.
    #[error("the trial of the store's conditional puts failed: {0}")]
    Bucket(#[from] BucketError),
}

const IF_NONE_MATCH: &str = "PUT with If-None-Match: *";
const IF_MATCH: &str = "PUT with If-Match";

/// Races writers against `bucket` below `prefix` (empty, or ending in `/`). `nonce` is fresh for each trial.
///
/// # Errors
/// `Unfit` says what the store did; `Bucket` if it could not be asked.
pub async fn probe(bucket: &BucketRef, prefix: &str, nonce: Uuid, trial: Trial) -> Result<(), ProbeError> {
    let race = Race {
        bucket,
        key: format!("{prefix}{}", nonce.simple()),
        nonce,
        racers: trial.racers,
    };
    let mut verdict = Ok(());
    for round in 0..trial.rounds {
        verdict = race.round(round).await;
        if verdict.is_err() {
            break;
        }
    }
    let cleaned = bucket.delete(&race.key).await;
    verdict?;
    Ok(cleaned?)
}

struct Race<'a> {
    bucket: &'a BucketRef,
    key: String,
    nonce: Uuid,
    racers: u32,
}

impl Race<'_> {
    async fn round(&self, round: u32) -> Result<(), ProbeError> {
        let body = |step: u32, racer: u32| Bytes::from(format!("probe {} {round} {step} {racer}\n", self.nonce));
        let creators = (0..self.racers).map(|racer| self.bucket.put_if_absent(&self.key, body(0, racer)));
        let (winner, first) = self.winner(IF_NONE_MATCH, join_all(creators).await)?;
        self.holds(IF_NONE_MATCH, &body(0, winner)).await?;

        let replacers = (0..self.racers).map(|racer| self.bucket.put_if_match(&self.key, body(1, racer), &first));
        let (winner, second) = self.winner(IF_MATCH, join_all(replacers).await)?;
        self.holds(IF_MATCH, &body(1, winner)).await?;

        self.loses(
            "of a version that was replaced",
            self.bucket.put_if_match(&self.key, body(2, 0), &first).await,
        )?;
        self.holds(IF_MATCH, &body(1, winner)).await?;
        self.bucket.delete(&self.key).await?;
        self.loses(
            "of an object that was deleted",
            self.bucket.put_if_match(&self.key, body(3, 0), &second).await,
        )
    }

    fn winner(&self, verb: &'static str, answers: Vec<Result<ETag, BucketError>>) -> Result<(u32, ETag), ProbeError> {
        let (mut winners, mut failure) = (Vec::new(), None);
        for (racer, answer) in (0..).zip(answers) {
            match answer {
                Ok(etag) => winners.push((racer, etag)),
                Err(BucketError::Precondition { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        match (winners.len(), failure) {
            (1, _) => Ok(winners.swap_remove(0)),
            // A racer without an answer may be the one that won.
            (0, Some(error)) => Err(error.into()),
            (count, _) => Err(self.unfit(verb, format!("{count} won"))),
        }
    }

    async fn holds(&self, verb: &'static str, body: &Bytes) -> Result<(), ProbeError> {
        let found = self.bucket.get(&self.key, None).await?.body;
        if found == *body {
            return Ok(());
        }
        Err(self.unfit(verb, "the object does not hold what the winner wrote".to_owned()))
    }

    fn loses(&self, what: &str, answer: Result<ETag, BucketError>) -> Result<(), ProbeError> {
        match answer {
            Err(BucketError::Precondition { .. }) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(self.unfit(IF_MATCH, format!("it accepted the tag {what}"))),
        }
    }

    fn unfit(&self, verb: &'static str, seen: String) -> ProbeError {
        ProbeError::Unfit {
            verb,
            racers: self.racers,
            seen,
        }
    }
}

#[cfg(test)]
mod tests;
