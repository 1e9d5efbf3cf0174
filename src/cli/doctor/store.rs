//! What the store allows and keeps: the requests that Pannier makes, a race of conditional puts, and its clock.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use uuid::Uuid;
use volume::bucket::{BucketError, BucketRef, ListRequest};
use volume::probe::{ProbeError, Trial, probe};
use volume_mount::store::{Access, Stores};
use volume_s3::S3Location;

use super::Finding;

/// 60 s: certificates and signatures allow 15 minutes at Amazon's, and other stores less.
const SKEW_MAX_S: u64 = 60;

/// 5 min: beyond it signatures are refused soon.
const SKEW_REFUSED_S: u64 = 300;

/// All that can be found out about the store.
pub async fn findings(cluster: &S3Location, access: &Access) -> Vec<Finding> {
    let advice = "check endpoint, region and that the network reaches it";
    let store = match Stores::default().store(access).await {
        Ok(store) => store,
        Err(error) => return vec![Finding::failure("store", error.to_string(), advice)],
    };
    if let Err(error) = store.bucket(&cluster.bucket).verify().await {
        let advice = match error {
            BucketError::Denied { .. } => "give the keys s3:ListBucket on the bucket, or other keys",
            BucketError::NoCredentials { .. } => "give this host credentials: it says above where they are looked for",
            BucketError::NoBucket { .. } => "create the bucket, or name another one",
            BucketError::NotFound { .. }
            | BucketError::Precondition { .. }
            | BucketError::Unsupported { .. }
            | BucketError::Unavailable { .. }
            | BucketError::Unexpected { .. } => advice,
        };
        return vec![Finding::failure("store", error.to_string(), advice)];
    }
    let bucket = store.open(cluster);
    let mut findings = vec![Finding::ok("store", format!("{cluster} answers"))];
    let nonce = Uuid::new_v4();
    match requests(&bucket, nonce).await {
        Ok(modified_unix_ms) => {
            findings.push(Finding::ok("store rights", "put, get, list and delete are allowed"));
            findings.push(clock(modified_unix_ms));
        }
        Err((verb, error)) => findings.push(Finding::failure(
            "store rights",
            format!("{verb} is refused: {error}"),
            "allow s3:PutObject, s3:GetObject, s3:DeleteObject and s3:ListBucket on the bucket and its objects",
        )),
    }
    findings.push(match probe(&bucket, "probe/", nonce, Trial::default()).await {
        Ok(()) => Finding::ok("store races", "of all racers of a conditional put exactly one won"),
        Err(error @ ProbeError::Unfit { .. }) => Finding::failure(
            "store races",
            error.to_string(),
            "use another store: on this one two nodes could write one volume",
        ),
        Err(ProbeError::Bucket(error)) => Finding::failure("store races", error.to_string(), advice),
    });
    findings
}

/// Makes one request of each kind on one object, and returns when the store says that it was written.
async fn requests(bucket: &BucketRef, nonce: Uuid) -> Result<u64, (&'static str, BucketError)> {
    let key = format!("probe/doctor-{}", nonce.simple());
    let at = |verb| move |error| (verb, error);
    let body = Bytes::from(nonce.to_string());
    bucket.put_if_absent(&key, body).await.map_err(at("PutObject"))?;
    let got = bucket.get(&key, Some(0..8)).await.map_err(at("GetObject"));
    let request = ListRequest {
        prefix: key.clone(),
        ..Default::default()
    };
    let listed = bucket.list(&request).await.map_err(at("ListObjectsV2"));
    // Whatever was refused, nothing stays behind.
    bucket.delete(&key).await.map_err(at("DeleteObject"))?;
    got?;
    let listed = listed?;
    Ok(listed.objects.first().map_or(0, |object| object.modified_unix_ms))
}

fn clock(modified_unix_ms: u64) -> Finding {
    #[expect(clippy::disallowed_methods, reason = "a clock is what is looked at")]
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let theirs = modified_unix_ms / 1_000;
    let skew = now.abs_diff(theirs);
    let found = format!("{skew} s apart from the store's");
    let advice = "run chrony or systemd-timesyncd; fencing needs no clock, but signatures do";
    if skew <= SKEW_MAX_S {
        Finding::ok("clock", found)
    } else if skew <= SKEW_REFUSED_S {
        Finding::warning("clock", found, advice)
    } else {
        Finding::failure("clock", found, advice)
    }
}
