//! A small S3 server for one machine: what `pannier try` keeps its volumes in when no bucket is given.
//!
//! Invariant: conditional puts are atomic. Of any number of racers that create a key, or replace the same version of
//! it, exactly one wins. Listings are exact at every moment.
//! Callers: `pannier try`, tests. Absent: multipart uploads, versions, access control beyond one key pair, and
//! durability against a crash of the machine (against one of the process it is durable).

mod s3;
mod shelf;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use shelf::Shelf;

/// Connections beyond this wait to be accepted: more than any client of ours opens.
const CONNECTIONS_MAX: usize = 256;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ObjectServerError {
    /// The directory cannot be used.
    #[error("cannot keep objects in {dir}: {source}")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// No port could be bound.
    #[error("cannot listen on 127.0.0.1: {0}")]
    Listen(#[source] io::Error),
}

/// A running server. Dropped, it stops; what it holds stays on disk.
#[derive(Debug)]
pub struct ObjectServer {
    address: SocketAddr,
    access_key_id: String,
    secret_access_key: String,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl ObjectServer {
    /// Serves the objects below `dir` on a free port of loopback, with a bucket of this name and a fresh key pair.
    ///
    /// # Errors
    /// `Directory` if `dir` cannot be made or read, `Listen` if there is no port.
    pub async fn start(dir: &Path, bucket: &str) -> Result<Self, ObjectServerError> {
        let refused = |source| ObjectServerError::Directory {
            dir: dir.to_owned(),
            source,
        };
        let shelf = Shelf::open(dir).map_err(refused)?;
        shelf.make_bucket(bucket).map_err(refused)?;
        let access_key_id = format!("try{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let secret_access_key = uuid::Uuid::new_v4().simple().to_string();
        let service = {
            let mut builder = S3ServiceBuilder::new(s3::Front::new(Arc::new(shelf)));
            builder.set_auth(SimpleAuth::from_single(
                access_key_id.clone(),
                secret_access_key.clone(),
            ));
            builder.build()
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(ObjectServerError::Listen)?;
        let address = listener.local_addr().map_err(ObjectServerError::Listen)?;
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, service, stopped));
        Ok(Self {
            address,
            access_key_id,
            secret_access_key,
            stop,
            accepting,
        })
    }

    /// For clients: `http://127.0.0.1:PORT`. Buckets are addressed by path.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The one key that may sign requests.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// Its secret.
    pub fn secret_access_key(&self) -> &str {
        &self.secret_access_key
    }

    /// Stops accepting and ends the open connections.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        drop((&mut self.accepting).await);
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service, mut stopped: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let socket = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let Ok((socket, _)) = socket else { continue };
        // Small answers must not wait for the client's delayed acknowledgements.
        drop(socket.set_nodelay(true));
        let service = service.clone();
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            // A connection that breaks is the client's to notice.
            drop(builder.serve_connection(TokioIo::new(socket), service).await);
        });
    }
}
