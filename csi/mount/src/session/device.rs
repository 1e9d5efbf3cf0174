//! The classic transport: threads that read requests from /dev/fuse, and replies that are written there. It works on every kernel.
//!
//! Where the kernel cannot send a request again to a successor (before Linux 6.9), each is read to a place that outlives this process
//! (`requests.rs`), and its reply is noted there before it leaves.
//! Invariant: a reply leaves in one write, which the kernel takes whole or not at all. Caller: `session.rs`. Absent: what a request means.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use rustix::io::writev;

use super::requests::{Leftover, Requests, number_of};
use super::room::Room;
use super::wire::{Asked, Carrier, FIELDS_BYTES, Kind, Serve, forgets, kind_of};

/// Set in the number of a request that was given to a predecessor, as the kernel does since Linux 6.9.
pub const SENT_AGAIN: u64 = 1 << 63;

/// 4 KiB beside the longest content: for the header and the fields of a request.
const BESIDE_CONTENT_BYTES: usize = 4096;

/// 512 pieces of a reply at most, half of what one write may have; more are joined.
const PIECES_MAX: usize = 512;

/// Length of the header of a reply.
const REPLY_HEADER_BYTES: usize = 16;

/// One connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: OwnedFd,
    requests: Option<Arc<Requests>>,
}

impl Device {
    /// A connection; with `requests` where they outlive this process there.
    pub fn new(device: OwnedFd, requests: Option<Arc<Requests>>) -> Self {
        Self {
            inner: Arc::new(Inner { device, requests }),
        }
    }

    /// Serves what a predecessor has left in `requests`.
    ///
    /// # Errors
    /// What the kernel says, if it is not that it has the reply already.
    pub fn serve_leftovers(&self, server: &impl Serve) -> io::Result<()> {
        let Some(requests) = &self.inner.requests else {
            return Ok(());
        };
        for left in requests.leftovers() {
            match left {
                Leftover::Reply(reply) => {
                    let write = || writev(&self.inner.device, &[IoSlice::new(&reply)]);
                    match requests.reply(number_of(&reply), Some(&reply), write) {
                        // `NOENT`: it had left.
                        Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Leftover::Request(mut request) => {
                    let number = number_of(&request) | SENT_AGAIN;
                    request[8..16].copy_from_slice(&number.to_ne_bytes());
                    let request = Bytes::from(request);
                    self.serve(&request, Some(&request), server);
                }
            }
        }
        Ok(())
    }

    /// Serves one request after another, until the kernel has given the connection up.
    ///
    /// # Errors
    /// What the kernel says that it does not say of a connection that lives.
    pub fn run(&self, content_bytes_max: usize, server: &impl Serve) -> io::Result<()> {
        let mut room = match &self.inner.requests {
            None => Some(Room::new(content_bytes_max + BESIDE_CONTENT_BYTES)),
            Some(_) => None,
        };
        loop {
            let served = match (&mut room, &self.inner.requests) {
                (Some(room), _) => self.serve_next(room, server),
                (None, Some(requests)) => self.serve_next_kept(requests, server),
                (None, None) => return Ok(()),
            };
            match served.map_err(|error| (error.raw_os_error().map(Errno::from_raw), error)) {
                Ok(()) => {}
                // ENOENT: whoever asked has gone.
                Err((Some(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN), _)) => {}
                Err((Some(Errno::ENODEV), _)) => return Ok(()),
                Err((_, error)) => return Err(error),
            }
        }
    }

    fn serve_next(&self, room: &mut Room, server: &impl Serve) -> io::Result<()> {
        room.read(&self.inner.device)?;
        match room.take_long() {
            Some(long) => self.serve(&long, Some(&long), server),
            None => self.serve(room.message(), None, server),
        }
        Ok(())
    }

    fn serve_next_kept(&self, requests: &Requests, server: &impl Serve) -> io::Result<()> {
        let filled = requests
            .take()
            .fill(|room| Ok(rustix::io::read(&self.inner.device, room)?))?;
        let request = Bytes::from(filled.0);
        self.serve(&request, Some(&request), server);
        Ok(())
    }

    fn serve(&self, message: &[u8], whole: Option<&Bytes>, server: &impl Serve) {
        let Some((kind, unique)) = kind_of(message) else {
            return tracing::error!(
                bytes = message.len(),
                "the kernel asks less than a request has at least"
            );
        };
        let reply = || DeviceReply {
            inner: Some(Arc::clone(&self.inner)),
            unique,
        };
        let serve = || match kind {
            Kind::Forget => forgets(message).for_each(|(ino, count)| server.forget(ino, count)),
            Kind::Destroy => reply().send_fields(Vec::new()),
            Kind::Operation => match Asked::flat(message, whole, &mut [0; FIELDS_BYTES]) {
                Some(asked) => server.serve(&asked, reply()),
                None => {
                    tracing::error!(bytes = message.len(), "a request of the kernel is cut off");
                    reply().send_error(Errno::EIO);
                }
            },
        };
        // A panic must not end the thread: the reply is dropped, which answers EIO.
        if catch_unwind(AssertUnwindSafe(serve)).is_err() {
            tracing::error!("an operation panicked; its caller got EIO");
        }
    }
}

impl Inner {
    fn answer(&self, unique: u64, answer: Result<&[&[u8]], Errno>) {
        if self.write(unique, answer) || answer.is_err() {
            return;
        }
        self.write(unique, Err(Errno::EIO));
    }

    /// False if the kernel did not take it, and still waits for an answer.
    fn write(&self, unique: u64, answer: Result<&[&[u8]], Errno>) -> bool {
        let (error, pieces) = answer.map_or_else(|errno| (-(errno as i32), &[][..]), |pieces| (0, pieces));
        let len = REPLY_HEADER_BYTES + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let number = match &self.requests {
            // Before Linux 6.9 the kernel knows nothing of the mark.
            Some(_) => unique & !SENT_AGAIN,
            None => unique,
        };
        let mut header = [0; REPLY_HEADER_BYTES];
        header[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..].copy_from_slice(&number.to_ne_bytes());
        let slices: Vec<IoSlice<'_>> = std::iter::once(&header[..])
            .chain(pieces.iter().copied())
            .map(IoSlice::new)
            .collect();
        let leave = || writev(&self.device, &slices);
        let left = match &self.requests {
            None => leave(),
            Some(requests) => {
                let short = requests
                    .has_room_for(len)
                    .then(|| [&header[..], &pieces.concat()].concat());
                requests.reply(number, short.as_deref(), leave)
            }
        };
        match left {
            Ok(_) => true,
            // Whoever asked has gone, or the mount has.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => true,
            Err(error) => {
                tracing::error!(%error, bytes = len, "a reply did not reach the kernel");
                false
            }
        }
    }
}

/// The reply to one request. Dropped unsent, it says EIO.
#[derive(Debug)]
struct DeviceReply {
    /// `None` once it is sent.
    inner: Option<Arc<Inner>>,
    unique: u64,
}

impl DeviceReply {
    fn send(&mut self, answer: Result<&[&[u8]], Errno>) {
        if let Some(inner) = self.inner.take() {
            inner.answer(self.unique, answer);
        }
    }
}

impl Carrier for DeviceReply {
    fn send_error(mut self, errno: Errno) {
        self.send(Err(errno));
    }

    fn send_fields(mut self, fields: Vec<u8>) {
        self.send(Ok(&[&fields]));
    }

    fn send_parts(mut self, parts: Vec<Bytes>) {
        if parts.len() > PIECES_MAX {
            return self.send(Ok(&[&parts.concat()]));
        }
        let pieces: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        self.send(Ok(&pieces));
    }
}

impl Drop for DeviceReply {
    fn drop(&mut self) {
        self.send(Err(Errno::EIO));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use volume::ids::InodeNo;

    use super::*;
    use crate::session::wire::u32_at;

    /// By its operation: answers in many pieces, panics, or forgets the reply.
    struct Odd;

    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const READLINK: u32 = 5;

    impl Serve for Odd {
        fn serve(&self, asked: &Asked<'_>, reply: impl Carrier) {
            match format!("{:?}", asked.operation()).as_str() {
                "Ok(Readlink)" => reply.send_parts(vec![Bytes::from_static(b"piece"); 2 * PIECES_MAX]),
                "Ok(Getattr)" => panic!("a server that panics"),
                _ => drop(reply),
            }
        }

        fn forget(&self, _ino: InodeNo, _count: u64) {}
    }

    fn message(opcode: u32, unique: u64, fields_bytes: usize) -> Vec<u8> {
        let mut message = vec![0; 40 + fields_bytes];
        message[4..8].copy_from_slice(&opcode.to_ne_bytes());
        message[8..16].copy_from_slice(&unique.to_ne_bytes());
        message
    }

    fn answer_to(message: &[u8], requests: Option<Arc<Requests>>) -> Vec<u8> {
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        let device = Device::new(ours.into(), requests);
        kernel.send(message).unwrap();
        // Nobody asks any more: the connection ends.
        kernel.shutdown(std::net::Shutdown::Write).unwrap();
        kernel.set_nonblocking(true).unwrap();
        match &device.inner.requests {
            None => device.serve_next(&mut Room::new(8192), &Odd).unwrap(),
            Some(requests) => device.serve_next_kept(requests, &Odd).unwrap(),
        }
        let mut answer = vec![0; 8192];
        let len = kernel.recv(&mut answer).unwrap();
        answer.truncate(len);
        assert_eq!(u32_at(&answer, 0) as usize, len, "as long as it says");
        answer
    }

    fn error_of(answer: &[u8]) -> i32 {
        u32_at(answer, 4).cast_signed()
    }

    #[test]
    fn a_request_that_nobody_answers_says_eio() {
        for requests in [None, Some(Arc::new(Requests::new().unwrap()))] {
            let unanswered = [
                message(LOOKUP, 6, 2),
                // A panic.
                message(GETATTR, 6, 16),
                // Cut off within its fields.
                message(GETATTR, 6, 15),
            ];
            for message in unanswered {
                let answer = answer_to(&message, requests.clone());
                assert_eq!((answer.len(), error_of(&answer), answer[8]), (16, -libc::EIO, 6));
            }
        }
    }

    #[test]
    fn an_answer_of_more_pieces_than_one_write_takes_is_whole() {
        for requests in [None, Some(Arc::new(Requests::new().unwrap()))] {
            let answer = answer_to(&message(READLINK, 8, 0), requests);
            assert_eq!((error_of(&answer), answer[8]), (0, 8));
            assert_eq!(answer[16..], *b"piece".repeat(2 * PIECES_MAX));
        }
    }

    #[test]
    fn a_kernel_that_marks_what_it_sends_again_gets_the_mark_back_and_one_that_does_not_gets_none() {
        let requests = Arc::new(Requests::new().unwrap());
        let sent_again = message(READLINK, 8 | SENT_AGAIN, 0);
        for (requests, mark) in [(None, SENT_AGAIN), (Some(requests), 0)] {
            let answer = answer_to(&sent_again, requests);
            assert_eq!(number_of(&answer), 8 | mark);
        }
    }
}
