//! What keeper and engine say to each other: packets on a unix socket, each with a version, a kind and fields behind their
//! lengths, some with a descriptor beside them.
//!
//! A keeper outlives many versions of the engine, so the words of a version are never changed: a new one is added, which a keeper of
//! before refuses. What is no word ends the connection.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, getsockopt, listen as listen_on, recvmsg, sendmsg, socket,
};

use super::secret::Secret;

/// The version of these words.
const VERSION: u8 = 1;

/// 128 KiB: what lies beside a connection is some KiB; the kernel takes packets of up to 208 KiB.
pub const PACKET_BYTES_MAX: usize = 128 * 1024;

/// 1,024 arguments of an engine.
const ARGS_MAX: usize = 1024;

/// One packet.
#[derive(Debug)]
pub enum Message {
    /// Engine: give me everything. It reads what needs up to this version.
    Ready {
        /// The version.
        reads: u32,
    },
    /// Keeper: keep serving this. A connection is beside it.
    Kept {
        /// What the engine called it.
        key: Vec<u8>,
        /// What the engine gave with it.
        beside: Secret,
    },
    /// Keeper: that was all.
    All,
    /// Engine: keep this, with the connection beside it; without one, replace what lies beside the one kept before.
    Keep {
        /// What to call it.
        key: Vec<u8>,
        /// The version that an engine must be able to read.
        needs: u32,
        /// What the next engine needs.
        beside: Secret,
    },
    /// Engine: this connection has ended.
    Forget {
        /// What it was called.
        key: Vec<u8>,
    },
    /// Engine: everything that was given is served.
    Serves,
    /// Engine: I am about to, as far as the store lets me.
    Adopts,
    /// Anybody: start this engine, and let it take over.
    Replace {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
    },
    /// Keeper: it is done.
    Done,
    /// Keeper: it is not.
    Refused {
        /// Why.
        why: String,
    },
    /// A word of a later build.
    Unknown {
        /// Its number.
        kind: u8,
    },
}

fn malformed(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.to_owned())
}

fn put(out: &mut Vec<u8>, field: &[u8]) {
    let len = u32::try_from(field.len()).expect("a packet is shorter");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(field);
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> io::Result<u32> {
        let (number, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| malformed("it ends too early"))?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*number))
    }

    fn field(&mut self) -> io::Result<&'a [u8]> {
        let len = self.number()? as usize;
        let (field, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| malformed("it ends too early"))?;
        self.0 = rest;
        Ok(field)
    }
}

impl Message {
    /// As a packet.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self {
            Self::Ready { .. } => 1,
            Self::Kept { .. } => 2,
            Self::All => 3,
            Self::Keep { .. } => 4,
            Self::Forget { .. } => 5,
            Self::Replace { .. } => 6,
            Self::Done => 7,
            Self::Refused { .. } => 8,
            Self::Serves => 9,
            Self::Adopts => 10,
            Self::Unknown { kind } => *kind,
        };
        let mut out = vec![VERSION, kind];
        match self {
            Self::Ready { reads } => out.extend_from_slice(&reads.to_le_bytes()),
            Self::Kept { key, beside } => {
                put(&mut out, key);
                put(&mut out, beside.as_ref());
            }
            Self::Keep { key, needs, beside } => {
                out.extend_from_slice(&needs.to_le_bytes());
                put(&mut out, key);
                put(&mut out, beside.as_ref());
            }
            Self::Forget { key } => put(&mut out, key),
            Self::Replace { program, args } => {
                put(&mut out, program.as_os_str().as_bytes());
                args.iter().for_each(|arg| put(&mut out, arg.as_bytes()));
            }
            Self::Refused { why } => put(&mut out, why.as_bytes()),
            Self::All | Self::Done | Self::Serves | Self::Adopts | Self::Unknown { .. } => {}
        }
        out
    }

    /// What a packet says.
    ///
    /// # Errors
    /// `InvalidData`.
    pub fn decode(packet: &[u8]) -> io::Result<Self> {
        let [version, kind, rest @ ..] = packet else {
            return Err(malformed("it is empty"));
        };
        if *version != VERSION {
            return Err(malformed(&format!(
                "it is of version {version}, this program speaks {VERSION}"
            )));
        }
        let mut fields = Fields(rest);
        Ok(match kind {
            1 => Self::Ready {
                reads: fields.number()?,
            },
            2 => Self::Kept {
                key: fields.field()?.to_vec(),
                beside: Secret::copy_of(fields.field()?)?,
            },
            3 => Self::All,
            4 => {
                let needs = fields.number()?;
                Self::Keep {
                    key: fields.field()?.to_vec(),
                    needs,
                    beside: Secret::copy_of(fields.field()?)?,
                }
            }
            5 => Self::Forget {
                key: fields.field()?.to_vec(),
            },
            6 => {
                let program = OsString::from_vec(fields.field()?.to_vec()).into();
                let mut args = Vec::new();
                while !fields.0.is_empty() && args.len() < ARGS_MAX {
                    args.push(OsString::from_vec(fields.field()?.to_vec()));
                }
                Self::Replace { program, args }
            }
            7 => Self::Done,
            8 => Self::Refused {
                why: String::from_utf8_lossy(fields.field()?).into_owned(),
            },
            9 => Self::Serves,
            10 => Self::Adopts,
            kind => Self::Unknown { kind: *kind },
        })
    }
}

/// One end of a connection between the two.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
    /// The process at the other end.
    pub pid: i32,
    /// It has said that it is ready to serve.
    pub is_ready: bool,
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Peer {
    fn of(socket: OwnedFd) -> io::Result<Self> {
        let pid = getsockopt(&socket, PeerCredentials)?.pid();
        Ok(Self {
            socket,
            pid,
            is_ready: false,
        })
    }

    /// The keeper that listens at `path`.
    ///
    /// # Errors
    /// `NotFound`, `ConnectionRefused` where none does.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::of(socket)
    }

    /// Says something, with a descriptor beside it or without.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send(&self, message: &Message, beside: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut packet = message.encode();
        let sent = self.send_packet(&packet, beside);
        // It may hold keys.
        packet.fill(0);
        sent
    }

    /// `Message::Kept`, without a copy of what is kept.
    ///
    /// # Errors
    /// As of `send`.
    pub fn send_kept(&self, key: &[u8], beside: &Secret, connection: &OwnedFd) -> io::Result<()> {
        let kept = Message::Kept {
            key: key.to_vec(),
            beside: beside.again()?,
        };
        self.send(&kept, Some(connection.as_fd()))
    }

    fn send_packet(&self, packet: &[u8], beside: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw = beside.map(|descriptor| [descriptor.as_raw_fd()]);
        let control: Vec<_> = raw.iter().map(|raw| ControlMessage::ScmRights(raw)).collect();
        loop {
            let parts = [IoSlice::new(packet)];
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Waits for the next packet. `None` when the other end is gone.
    ///
    /// # Errors
    /// `InvalidData` for what is not understood; what the socket says.
    pub fn receive(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut packet = Secret::zeros(PACKET_BYTES_MAX)?;
        let mut space = nix::cmsg_space!(RawFd);
        let (len, descriptor) = loop {
            let mut parts = [IoSliceMut::new(packet.as_mut())];
            let received = recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            );
            match received {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
                Ok(message) => break (message.bytes, descriptor_of(message.cmsgs()?)),
            }
        };
        if len == 0 {
            return Ok(None);
        }
        Ok(Some((Message::decode(&packet.as_ref()[..len])?, descriptor)))
    }
}

fn descriptor_of(messages: impl Iterator<Item = ControlMessageOwned>) -> Option<OwnedFd> {
    let mut found = None;
    for message in messages {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            for raw in descriptors {
                // SAFETY: the kernel has just installed this descriptor for us, nobody else knows its number, and it is
                // wrapped only here.
                found = Some(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
    found
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// Listens at `path`, for whoever may open it: its owner.
///
/// # Errors
/// What the system refuses.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = new_socket()?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listen_on(&socket, Backlog::new(16)?)?;
    Ok(socket)
}

/// Who knocks; `None` if it has gone already.
///
/// # Errors
/// What the system refuses.
pub fn accept(listener: &OwnedFd) -> io::Result<Option<Peer>> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
        Err(Errno::EINTR | Errno::EAGAIN | Errno::ECONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
        // SAFETY: the kernel has just made this descriptor for us, and it is wrapped only here.
        Ok(raw) => Peer::of(unsafe { OwnedFd::from_raw_fd(raw) }).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Message> {
        let beside = || Secret::copy_of(b"beside").unwrap();
        let key = || b"key".to_vec();
        vec![
            Message::Ready { reads: 3 },
            Message::Kept {
                key: key(),
                beside: beside(),
            },
            Message::All,
            Message::Keep {
                key: key(),
                needs: 2,
                beside: beside(),
            },
            Message::Forget { key: key() },
            Message::Replace {
                program: "/bin/engine".into(),
                args: vec!["--socket".into(), "/s".into()],
            },
            Message::Done,
            Message::Refused { why: "no".into() },
            Message::Serves,
            Message::Adopts,
        ]
    }

    #[test]
    fn every_word_reads_as_it_was_written_and_any_part_of_one_is_refused_or_another() {
        for message in all() {
            let packet = message.encode();
            let again = Message::decode(&packet).unwrap();
            assert_eq!(format!("{message:?}"), format!("{again:?}"));
            assert_eq!(again.encode(), packet);
            for len in 0..packet.len() {
                if let Ok(part) = Message::decode(&packet[..len]) {
                    assert!(
                        matches!(part, Message::Replace { .. }),
                        "{len} of {message:?}: {part:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_word_of_another_version_is_refused_by_its_number() {
        let mut packet = Message::Done.encode();
        packet[0] = VERSION + 1;
        assert!(Message::decode(&packet).unwrap_err().to_string().contains("version 2"));
    }
}
