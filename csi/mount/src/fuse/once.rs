//! Requests that must not be done twice: what makes, moves or takes away a name or an attribute.
//!
//! A kernel sends a request again to whoever serves its connection after a process that died with it; it says so in the
//! highest bit of the request's number. What the predecessor did is answered from its record, the rest is done now. All
//! other requests may be done twice: a program that has not got an answer yet cannot tell.
//! Absent: the record (`volume::calls`).

use volume::attr::Attr;
use volume::calls::{Unanswered, once};
use volume::error::FsError;
use volume::ids::InodeNo;
use volume::tail::Answer;
use volume::volume::Volume;

use super::answer::{About, refuse};
use super::reply::{Created, Found, Opened, Reply, Request};
use super::{FOREVER, OpenFlags, Skin};
use crate::session::SENT_AGAIN;

/// A request by its number, and what a predecessor has answered to it.
struct Asked {
    call: u64,
    answered: Option<Answer>,
}

impl Skin {
    fn asked(&self, request: &Request) -> Asked {
        let unique = request.unique;
        let call = unique & !SENT_AGAIN;
        let again = unique & SENT_AGAIN != 0;
        Asked {
            call,
            answered: again.then(|| self.volume.answer_of(call)).flatten(),
        }
    }

    /// Runs `work`, whose success says nothing more, once.
    pub(super) fn once<F>(&self, (request, about): (&Request, About), work: F, reply: impl Reply<()>)
    where
        F: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        let asked = self.asked(request);
        if asked.answered.is_some() {
            return reply.give(());
        }
        self.run(async move {
            let (done, unanswered) = once(asked.call, work).await;
            match done {
                Ok(()) => reply.give(()),
                Err(error) => refuse(reply, about, &error),
            }
            // The answer has left.
            drop(unanswered);
        });
    }

    /// Runs `work`, which makes an entry, once.
    pub(super) fn make<F>(&self, (request, about): (&Request, About), reply: impl Reply<Found>, work: F)
    where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let (asked, volume) = (self.asked(request), self.volume.clone());
        self.run(async move {
            let (done, unanswered) = made(asked, volume, work).await;
            match done {
                Ok(attr) => reply.give(lasting(attr)),
                Err(error) => refuse(reply, about, &error),
            }
            drop(unanswered);
        });
    }

    /// Runs `work`, which makes a file and opens it, once.
    pub(super) fn make_open<F>(
        &self,
        (request, about): (&Request, About),
        flags: OpenFlags,
        reply: impl Reply<Created>,
        work: F,
    ) where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let (asked, volume) = (self.asked(request), self.volume.clone());
        let (flusher, open_flags) = (self.flusher.clone(), self.open_flags());
        self.run(async move {
            let (done, unanswered) = made(asked, volume, work).await;
            match done {
                Ok(attr) => {
                    flusher.opened(attr.ino, flags);
                    reply.give(Created(lasting(attr), Opened(open_flags)));
                }
                Err(error) => refuse(reply, about, &error),
            }
            drop(unanswered);
        });
    }
}

fn lasting(attr: Attr) -> Found {
    Found {
        attr: Some(attr),
        valid: FOREVER,
    }
}

async fn made(
    asked: Asked,
    volume: Volume,
    work: impl Future<Output = Result<Attr, FsError>>,
) -> (Result<Attr, FsError>, Option<Unanswered>) {
    match asked.answered {
        Some(answer) => (made_before(&volume, answer.ino).await, None),
        None => {
            let (done, unanswered) = once(asked.call, work).await;
            (done, Some(unanswered))
        }
    }
}

/// What was made stays made, with the reference that the kernel counts for the answer.
async fn made_before(volume: &Volume, ino: InodeNo) -> Result<Attr, FsError> {
    let attr = volume.getattr(ino).await?;
    volume.remember(ino);
    Ok(attr)
}
