//! Requests that must not be done twice: what makes, moves or takes away a name or an attribute.
//!
//! A kernel sends a request again to whoever serves its connection after a process that died with it; it says so in the
//! highest bit of the request's number. What the predecessor did is answered from its record, the rest is done now. All
//! other requests may be done twice: a program that has not got an answer yet cannot tell.
//! Absent: the record (`volume::calls`).

use fuser::{OpenFlags, ReplyCreate, ReplyEmpty, ReplyEntry, Request};
use volume::attr::Attr;
use volume::calls::{Unanswered, once};
use volume::error::FsError;
use volume::ids::InodeNo;
use volume::tail::Answer;
use volume::volume::Volume;

use super::answer::{About, refuse};
use super::stat::file_attr;
use super::{FOREVER, GENERATION, HANDLE, Skin};
use crate::session::{Outgoing, SENT_AGAIN};

/// A request by its number, and what a predecessor has answered to it.
struct Asked {
    call: u64,
    answered: Option<Answer>,
}

impl Skin {
    fn asked(&self, request: &Request) -> Asked {
        let unique = request.unique().0;
        let call = unique & !SENT_AGAIN;
        let again = unique & SENT_AGAIN != 0;
        Asked {
            call,
            answered: again.then(|| self.volume.answer_of(call)).flatten(),
        }
    }

    /// Runs `work`, whose success says nothing more, once.
    pub(super) fn once<F>(&self, (request, about): (&Request, About), work: F, reply: ReplyEmpty)
    where
        F: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        let asked = self.asked(request);
        if asked.answered.is_some() {
            return reply.ok();
        }
        let outgoing = self.outgoing.clone();
        self.run(async move {
            let (done, unanswered) = once(asked.call, work).await;
            let held = outgoing.hold(asked.call, unanswered);
            match done {
                Ok(()) => reply.ok(),
                Err(error) => refuse(reply, about, &error),
            }
            drop(held);
        });
    }

    /// Runs `work`, which makes an entry, once.
    pub(super) fn make<F>(&self, (request, about): (&Request, About), reply: ReplyEntry, work: F)
    where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let (asked, volume, outgoing) = (self.asked(request), self.volume.clone(), self.outgoing.clone());
        self.run(async move {
            let (done, held) = made(asked, (volume, outgoing), work).await;
            match done {
                Ok(attr) => reply.entry(&FOREVER, &file_attr(&attr), GENERATION),
                Err(error) => refuse(reply, about, &error),
            }
            drop(held);
        });
    }

    /// Runs `work`, which makes a file and opens it, once.
    pub(super) fn make_open<F>(&self, (request, about): (&Request, About), flags: i32, reply: ReplyCreate, work: F)
    where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let (asked, volume, outgoing) = (self.asked(request), self.volume.clone(), self.outgoing.clone());
        let (flusher, open_flags) = (self.flusher.clone(), self.open_flags());
        self.run(async move {
            let (done, held) = made(asked, (volume, outgoing), work).await;
            match done {
                Ok(attr) => {
                    flusher.opened(attr.ino, OpenFlags(flags));
                    reply.created(&FOREVER, &file_attr(&attr), GENERATION, HANDLE, open_flags);
                }
                Err(error) => refuse(reply, about, &error),
            }
            drop(held);
        });
    }
}

async fn made(
    asked: Asked,
    (volume, outgoing): (Volume, Outgoing),
    work: impl Future<Output = Result<Attr, FsError>>,
) -> (Result<Attr, FsError>, Option<Unanswered>) {
    match asked.answered {
        Some(answer) => (made_before(&volume, answer.ino).await, None),
        None => {
            let (done, unanswered) = once(asked.call, work).await;
            (done, outgoing.hold(asked.call, unanswered))
        }
    }
}

/// What was made stays made, with the reference that the kernel counts for the answer.
async fn made_before(volume: &Volume, ino: InodeNo) -> Result<Attr, FsError> {
    let attr = volume.getattr(ino).await?;
    volume.remember(ino);
    Ok(attr)
}
