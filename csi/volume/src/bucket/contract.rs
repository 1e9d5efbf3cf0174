//! What every `Bucket` must do, as a program: one check for the bucket in memory, our S3 client against each server that
//! we know, and the embedded server.
//!
//! It is not behind `cfg(test)` because other crates run it. It never panics on what a store does: a store that breaks
//! the contract is outside input. Absent: the proof that racers never both win under load (see `probe.rs`).

use bytes::Bytes;

use super::{BucketError, BucketRef, ETag, ListRequest, ObjectMeta};
use crate::rope::Rope;

/// How many writers race for one key in the last step.
const RACERS: u8 = 8;

/// 9 MiB: above the 8 MiB of the usual threshold for uploads in parts, so that one undivided PUT of that size is proven.
const LARGE_BYTES: usize = 9 << 20;

/// A promise of the port that a store did not keep.
#[derive(Debug, thiserror::Error)]
pub enum Breach {
    /// A call that had to succeed failed.
    #[error("{step}: {source}")]
    Failed {
        /// What was tried.
        step: &'static str,
        /// How it failed.
        source: BucketError,
    },
    /// A call gave another answer than the port promises.
    #[error("{step}: expected {expected}, got {got}")]
    Wrong {
        /// What was tried.
        step: &'static str,
        /// What the port promises.
        expected: String,
        /// What came.
        got: String,
    },
}

type Checked = Result<(), Breach>;

/// Checks every promise of the port on `bucket` below `prefix` (empty, or ending in `/`), which must hold no objects.
/// Leaves nothing behind when all is well.
///
/// # Errors
/// The first `Breach` found; objects of the check may then remain below `prefix`.
pub async fn check(bucket: &BucketRef, prefix: &str) -> Checked {
    missing_objects(bucket, &format!("{prefix}missing")).await?;
    conditional_puts(bucket, &format!("{prefix}conditional")).await?;
    ranges(bucket, &format!("{prefix}ranges")).await?;
    sizes(bucket, &format!("{prefix}sizes")).await?;
    odd_keys(bucket, &format!("{prefix}odd/")).await?;
    flat_lists(bucket, &format!("{prefix}flat/")).await?;
    delimited_lists(bucket, &format!("{prefix}tree/")).await?;
    races(bucket, &format!("{prefix}race")).await?;
    let left = all_keys(bucket, "list what is left", prefix).await?;
    equal("everything was deleted", &left, &Vec::new())
}

fn ok<T>(step: &'static str, answer: Result<T, BucketError>) -> Result<T, Breach> {
    answer.map_err(|source| Breach::Failed { step, source })
}

fn equal<T: std::fmt::Debug + PartialEq>(step: &'static str, got: &T, expected: &T) -> Checked {
    if got == expected {
        return Ok(());
    }
    Err(Breach::Wrong {
        step,
        expected: format!("{expected:?}"),
        got: format!("{got:?}"),
    })
}

fn fails<T>(step: &'static str, answer: Result<T, BucketError>, expected: fn(&BucketError) -> bool) -> Checked {
    let got = match answer {
        Err(error) if expected(&error) => return Ok(()),
        Err(error) => error.to_string(),
        Ok(_) => "success".to_owned(),
    };
    Err(Breach::Wrong {
        step,
        expected: "the port's error".to_owned(),
        got,
    })
}

fn not_found(error: &BucketError) -> bool {
    matches!(error, BucketError::NotFound { .. })
}

fn precondition(error: &BucketError) -> bool {
    matches!(error, BucketError::Precondition { .. })
}

async fn holds(bucket: &BucketRef, key: &str, body: &Bytes, etag: &ETag) -> Checked {
    let object = ok("get an object", bucket.get(key, None).await)?;
    if object.body != *body {
        let (expected, got) = (
            format!("{} bytes as put", body.len()),
            format!("{} other bytes", object.body.len()),
        );
        return Err(Breach::Wrong {
            step: "get returns what was put",
            expected,
            got,
        });
    }
    equal("get returns the version that put returned", &object.etag, etag)?;
    equal("get returns the size", &object.size_bytes, &(body.len() as u64))?;
    let meta = ok("head an object", bucket.head(key).await)?;
    equal("head returns the key", &meta.key.as_str(), &key)?;
    equal("head returns the size", &meta.size_bytes, &(body.len() as u64))?;
    equal("head returns the version", &meta.etag.as_ref(), &Some(etag))
}

async fn missing_objects(bucket: &BucketRef, key: &str) -> Checked {
    fails(
        "get of a missing object is NotFound",
        bucket.get(key, None).await,
        not_found,
    )?;
    fails(
        "ranged get of a missing object is NotFound",
        bucket.get(key, Some(0..4)).await,
        not_found,
    )?;
    fails(
        "head of a missing object is NotFound",
        bucket.head(key).await,
        not_found,
    )?;
    ok("delete of a missing object is Ok", bucket.delete(key).await)
}

async fn conditional_puts(bucket: &BucketRef, key: &str) -> Checked {
    let [one, two, three] = [&b"one"[..], b"two!", b"three"].map(Bytes::from_static);
    let first = ok("put_if_absent creates", bucket.put_if_absent(key, one.clone()).await)?;
    holds(bucket, key, &one, &first).await?;
    let again = bucket.put_if_absent(key, two.clone()).await;
    fails("put_if_absent on an object is Precondition", again, precondition)?;
    holds(bucket, key, &one, &first).await?;

    let second = ok(
        "put_if_match replaces",
        bucket.put_if_match(key, two.clone(), &first).await,
    )?;
    holds(bucket, key, &two, &second).await?;
    if first == second {
        return equal("another body has another version", &Some(&second), &None);
    }
    let stale = bucket.put_if_match(key, three.clone(), &first).await;
    fails("put_if_match of an old version is Precondition", stale, precondition)?;
    holds(bucket, key, &two, &second).await?;

    ok("delete an object", bucket.delete(key).await)?;
    fails("get after delete is NotFound", bucket.get(key, None).await, not_found)?;
    let gone = bucket.put_if_match(key, three.clone(), &second).await;
    fails("put_if_match of a deleted object is Precondition", gone, precondition)?;
    fails("a lost put_if_match creates nothing", bucket.head(key).await, not_found)?;
    let dropped = bucket.delete_if_match(key, &second).await;
    ok("delete_if_match of a missing object is Ok", dropped)?;
    let third = ok(
        "put_if_absent after delete creates",
        bucket.put_if_absent(key, three.clone()).await,
    )?;
    holds(bucket, key, &three, &third).await?;
    let other = bucket.delete_if_match(key, &first).await;
    fails("delete_if_match of an old version is Precondition", other, precondition)?;
    holds(bucket, key, &three, &third).await?;
    ok("delete_if_match deletes", bucket.delete_if_match(key, &third).await)?;
    ok("delete it twice", bucket.delete(key).await)
}

async fn ranges(bucket: &BucketRef, key: &str) -> Checked {
    let body = Bytes::from_static(b"0123456789");
    let etag = ok("put for ranges", bucket.put_if_absent(key, body.clone()).await)?;
    for (asked, got) in [
        (0..10, 0..10),
        (0..1, 0..1),
        (3..7, 3..7),
        (9..10, 9..10),
        (7..400, 7..10),
    ] {
        let object = ok("get a range", bucket.get(key, Some(asked)).await)?;
        equal("a range has its bytes", &object.body, &body.slice(got))?;
        equal("a range knows the size of the whole", &object.size_bytes, &10)?;
        equal("a range knows the version of the whole", &object.etag, &etag)?;
    }
    let past = bucket.get(key, Some(10..12)).await;
    let unexpected = |error: &BucketError| matches!(error, BucketError::Unexpected { .. });
    fails("a range past the end is Unexpected", past, unexpected)?;
    ok("delete an object", bucket.delete(key).await)
}

async fn sizes(bucket: &BucketRef, key: &str) -> Checked {
    for size in [0, 1, 4096, LARGE_BYTES] {
        // A period of 251 bytes, so that blocks that changed places show.
        let body = Bytes::from((0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        let etag = ok("put of any size", bucket.put_if_absent(key, body.clone()).await)?;
        holds(bucket, key, &body, &etag).await?;
        ok("delete an object", bucket.delete(key).await)?;
        let etag = ok(
            "put of any size in pieces",
            bucket.put_rope_if_absent(key, cut(&body)).await,
        )?;
        holds(bucket, key, &body, &etag).await?;
        // Of other bytes: equal ones may be taken for those of an earlier try of the same put.
        let other = Bytes::from([&body[..], b"!"].concat());
        fails(
            "put_rope_if_absent of an existing object loses",
            bucket.put_rope_if_absent(key, cut(&other)).await,
            precondition,
        )?;
        ok("delete an object", bucket.delete(key).await)?;
    }
    Ok(())
}

/// A body in pieces of all lengths, short ones among long ones.
fn cut(body: &Bytes) -> Rope {
    let (mut rest, mut len) = (body.clone(), 1);
    let pieces = std::iter::from_fn(|| {
        let piece = rest.split_to(len.min(rest.len()));
        len = if len > 200_000 { 1 } else { 3 * len };
        (!piece.is_empty()).then_some(piece)
    });
    pieces.collect()
}

async fn odd_keys(bucket: &BucketRef, prefix: &str) -> Checked {
    let odd = [
        "a b+c",
        "%41&=?#",
        "caf\u{e9}~!'()*@:,;$",
        "x.tmp",
        "..a",
        "upper/UPPER",
        "\u{1f980}",
    ];
    let mut keys: Vec<String> = odd.iter().map(|name| format!("{prefix}{name}")).collect();
    keys.sort();
    for key in &keys {
        let body = Bytes::from(key.clone());
        let etag = ok("put under an odd key", bucket.put_if_absent(key, body.clone()).await)?;
        holds(bucket, key, &body, &etag).await?;
    }
    equal(
        "odd keys are listed as given",
        &all_keys(bucket, "list odd keys", prefix).await?,
        &keys,
    )?;
    for key in &keys {
        ok("delete an odd key", bucket.delete(key).await)?;
    }
    equal(
        "odd keys are gone",
        &all_keys(bucket, "list odd keys", prefix).await?,
        &Vec::new(),
    )
}

async fn flat_lists(bucket: &BucketRef, prefix: &str) -> Checked {
    let keys: Vec<String> = (0..7).map(|i| format!("{prefix}k{i}")).collect();
    // Put in reverse: the order of a list must not be that of creation.
    for key in keys.iter().rev() {
        ok(
            "put for a list",
            bucket.put_if_absent(key, Bytes::from_static(b"list")).await,
        )?;
        let listed = all_keys(bucket, "list after put", key).await?;
        equal("a put is listed at once", &listed, &vec![key.clone()])?;
    }
    for rows_max in [0, 1, 2, 3, 7] {
        let (objects, _) = pages(
            bucket,
            ListRequest {
                prefix: prefix.into(),
                rows_max,
                ..Default::default()
            },
        )
        .await?;
        let listed: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
        equal("pages hold every key once, in order", &listed, &keys)?;
        equal(
            "a list knows sizes",
            &objects.iter().all(|object| object.size_bytes == 4),
            &true,
        )?;
    }
    for rows_max in [0, 2] {
        let start_after = Some(keys[2].clone());
        let request = ListRequest {
            prefix: prefix.into(),
            start_after,
            rows_max,
            ..Default::default()
        };
        let listed: Vec<String> = pages(bucket, request)
            .await?
            .0
            .into_iter()
            .map(|object| object.key)
            .collect();
        equal("start_after leaves out all up to it", &listed, &keys[3..].to_vec())?;
    }
    let half = all_keys(bucket, "list by a prefix without a slash", &format!("{prefix}k3")).await?;
    equal("a prefix need not end in a slash", &half, &keys[3..4].to_vec())?;
    for (i, key) in keys.iter().enumerate() {
        ok("delete a listed key", bucket.delete(key).await)?;
        let left = all_keys(bucket, "list after delete", prefix).await?;
        equal("a delete is seen by a list at once", &left, &keys[i + 1..].to_vec())?;
    }
    Ok(())
}

async fn delimited_lists(bucket: &BucketRef, prefix: &str) -> Checked {
    let keys = ["a", "b/1", "b/2", "b/c/3", "d", "e/4", "f"].map(|name| format!("{prefix}{name}"));
    for key in &keys {
        ok(
            "put for a delimited list",
            bucket.put_if_absent(key, Bytes::from_static(b"list")).await,
        )?;
    }
    for rows_max in [0, 1, 2, 4] {
        let request = ListRequest {
            prefix: prefix.into(),
            delimited: true,
            rows_max,
            ..Default::default()
        };
        let (objects, prefixes) = pages(bucket, request).await?;
        let listed: Vec<String> = objects.into_iter().map(|object| object.key).collect();
        equal(
            "only keys without a further slash",
            &listed,
            &["a", "d", "f"].map(|n| format!("{prefix}{n}")).to_vec(),
        )?;
        equal(
            "one row for each folder",
            &prefixes,
            &["b/", "e/"].map(|n| format!("{prefix}{n}")).to_vec(),
        )?;
    }
    for key in &keys {
        ok("delete a listed key", bucket.delete(key).await)?;
    }
    Ok(())
}

async fn races(bucket: &BucketRef, key: &str) -> Checked {
    let body = |racer: u8| Bytes::from(vec![racer; 64]);
    let creators = (0..RACERS).map(|racer| async move { bucket.put_if_absent(key, body(racer)).await });
    let (winner, etag) = single_winner("racers of put_if_absent", futures::future::join_all(creators).await)?;
    holds(bucket, key, &body(winner), &etag).await?;

    let (old, etag) = (&etag, RACERS..2 * RACERS);
    let replacers = etag.map(|racer| async move { bucket.put_if_match(key, body(racer), old).await });
    let (winner, etag) = single_winner("racers of put_if_match", futures::future::join_all(replacers).await)?;
    holds(bucket, key, &body(winner + RACERS), &etag).await?;
    ok("delete an object", bucket.delete(key).await)
}

fn single_winner(step: &'static str, answers: Vec<Result<ETag, BucketError>>) -> Result<(u8, ETag), Breach> {
    let mut winners = Vec::new();
    for (racer, answer) in (0u8..).zip(answers) {
        match answer {
            Ok(etag) => winners.push((racer, etag)),
            Err(BucketError::Precondition { .. }) => {}
            Err(source) => return Err(Breach::Failed { step, source }),
        }
    }
    let count = winners.len();
    match (count, winners.pop()) {
        (1, Some(winner)) => Ok(winner),
        _ => Err(Breach::Wrong {
            step,
            expected: "one winner".to_owned(),
            got: format!("{count} winners"),
        }),
    }
}

async fn all_keys(bucket: &BucketRef, step: &'static str, prefix: &str) -> Result<Vec<String>, Breach> {
    let request = ListRequest {
        prefix: prefix.to_owned(),
        ..Default::default()
    };
    let page = ok(step, bucket.list(&request).await)?;
    Ok(page.objects.into_iter().map(|object| object.key).collect())
}

async fn pages(bucket: &BucketRef, mut request: ListRequest) -> Result<(Vec<ObjectMeta>, Vec<String>), Breach> {
    let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
    // No list of this check has more rows; more pages than rows would never end.
    for _ in 0..16 {
        let page = ok("list a page", bucket.list(&request).await)?;
        let rows = page.objects.len() + page.prefixes.len();
        if request.rows_max > 0 && rows > request.rows_max as usize {
            equal("a page is no longer than asked", &rows, &(request.rows_max as usize))?;
        }
        objects.extend(page.objects);
        prefixes.extend(page.prefixes);
        request.page = page.next;
        if request.page.is_none() {
            return Ok((objects, prefixes));
        }
    }
    Err(Breach::Wrong {
        step: "list pages",
        expected: "an end".to_owned(),
        got: "more than 16 pages".to_owned(),
    })
}
