//! The nodes of a cluster: one small object each, written when a node's plugin starts.
//!
//! It exists so that a volume is never published to a node that nobody has heard of. It says nothing about whether the
//! node is alive: only leases and epochs decide who may write.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Admin, AdminError};
use crate::bucket::{BucketError, ListRequest};
use crate::volume_id::NodeId;

/// The newest format of a node's object that this program writes and reads.
const NODE_FORMAT: u32 = 1;

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    format: u32,
    /// The id that the orchestrator knows it by.
    pub node_id: NodeId,
    /// Version of the program that registered it.
    pub version: String,
    /// When it first registered with this version, in milliseconds since the Unix epoch.
    pub registered_unix_ms: i64,
}

impl NodeRecord {
    /// A record of the newest format.
    pub fn new(node_id: NodeId, version: &str, registered_unix_ms: i64) -> Self {
        Self {
            format: NODE_FORMAT,
            node_id,
            version: version.to_owned(),
            registered_unix_ms,
        }
    }
}

impl Admin {
    /// Makes a node known. Registering it again with the same version changes nothing.
    ///
    /// # Durability
    /// `Ok` means that the record is in the bucket.
    ///
    /// # Errors
    /// `Bucket`.
    pub async fn register_node(&self, record: &NodeRecord) -> Result<(), AdminError> {
        let key = node_key(&record.node_id);
        let body = Bytes::from(serde_json::to_vec(record).expect("a node record holds only what JSON can say"));
        match self.cluster.put_if_absent(&key, body.clone()).await {
            Ok(_) => return Ok(()),
            Err(BucketError::Precondition { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let found = self.cluster.get(&key, None).await?;
        let same = serde_json::from_slice::<NodeRecord>(&found.body)
            .is_ok_and(|old| old.version == record.version && old.node_id == record.node_id);
        if same {
            return Ok(());
        }
        match self.cluster.put_if_match(&key, body, &found.etag).await {
            // Another plugin of the same node was faster. Either record will do.
            Ok(_) | Err(BucketError::Precondition { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is known of a node.
    ///
    /// # Errors
    /// `NoNode` if it never registered; `NodeRecord`, `Bucket`.
    pub async fn node(&self, node_id: &NodeId) -> Result<NodeRecord, AdminError> {
        match self.cluster.get(&node_key(node_id), None).await {
            Ok(object) => decode(node_id.as_str(), &object.body),
            Err(BucketError::NotFound { .. }) => Err(AdminError::NoNode {
                node_id: node_id.clone(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// All nodes that ever registered and were not forgotten.
    ///
    /// # Errors
    /// `NodeRecord`, `Bucket`.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, AdminError> {
        let mut request = ListRequest {
            prefix: "n/".to_owned(),
            ..Default::default()
        };
        let mut nodes = Vec::new();
        loop {
            let page = self.cluster.list(&request).await?;
            for object in page.objects {
                match self.cluster.get(&object.key, None).await {
                    Ok(found) => nodes.push(decode(&object.key, &found.body)?),
                    Err(BucketError::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            request.page = page.next;
            if request.page.is_none() {
                return Ok(nodes);
            }
        }
    }

    /// Forgets a node; `Ok` if it was not known. Its publications stay until they are taken back.
    ///
    /// # Errors
    /// `Bucket`.
    pub async fn forget_node(&self, node_id: &NodeId) -> Result<(), AdminError> {
        Ok(self.cluster.delete(&node_key(node_id)).await?)
    }
}

fn node_key(node_id: &NodeId) -> String {
    format!("n/{}", node_id.key_part())
}

fn decode(node_id: &str, body: &[u8]) -> Result<NodeRecord, AdminError> {
    serde_json::from_slice(body).map_err(|source| AdminError::NodeRecord {
        node_id: node_id.to_owned(),
        source,
    })
}
