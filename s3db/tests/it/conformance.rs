//! What every object store and every queue promises, whoever implements it.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use s3db::cloud::{Delete, ETag, Get, Objects, Put, PutIf, Queue, QueueSettings, Sent, ToSend};

fn stored(put: Put) -> ETag {
    match put {
        Put::Stored(etag) => etag,
        other => panic!("not stored: {other:?}"),
    }
}

async fn bytes_of(objects: &dyn Objects, name: &str) -> Option<(Bytes, ETag)> {
    match objects.get(name, None).await.unwrap() {
        Get::Found { bytes, etag, .. } => Some((bytes, etag)),
        Get::Absent => None,
        Get::Unchanged { .. } => panic!("unchanged since nothing"),
    }
}

/// Conditions, tags, deletes and lists. Names begin with `base`.
pub(crate) async fn objects(objects: &dyn Objects, base: &str) {
    let name = |n: &str| format!("{base}/{n}");
    let (one, other) = (Bytes::from_static(b"one"), Bytes::from_static(b"other"));
    let a = name("a");
    assert_eq!(bytes_of(objects, &a).await, None, "nothing is there");
    let nothing = ETag::new("\"none\"");
    assert_eq!(objects.put(&a, one.clone(), PutIf::Matches(nothing)).await, Put::Missing);
    let first = stored(objects.put(&a, one.clone(), PutIf::Absent).await);
    assert_eq!(bytes_of(objects, &a).await, Some((one.clone(), first.clone())));
    assert_eq!(objects.put(&a, other.clone(), PutIf::Absent).await, Put::Refused, "create once");
    assert_eq!(bytes_of(objects, &a).await.unwrap().0, one, "a refused put changes nothing");

    let unchanged = objects.get(&a, Some(&first)).await.unwrap();
    assert!(matches!(unchanged, Get::Unchanged { .. }), "{unchanged:?}");
    let second = stored(objects.put(&a, other.clone(), PutIf::Matches(first.clone())).await);
    assert_ne!(first, second);
    let again = objects.put(&a, one.clone(), PutIf::Matches(first.clone())).await;
    assert_eq!(again, Put::Refused, "the version is gone");
    let changed = objects.get(&a, Some(&first)).await.unwrap();
    assert!(matches!(changed, Get::Found { .. }), "{changed:?}");

    assert_eq!(objects.delete(&a, Some(&first)).await, Delete::Refused, "another version");
    assert!(bytes_of(objects, &a).await.is_some());
    assert_eq!(objects.delete(&a, Some(&second)).await, Delete::Gone);
    assert_eq!(objects.delete(&a, None).await, Delete::Gone, "twice is no error");
    assert_eq!(bytes_of(objects, &a).await, None);
    stored(objects.put(&a, one.clone(), PutIf::Absent).await);

    let empty = name("empty");
    stored(objects.put(&empty, Bytes::new(), PutIf::Always).await);
    assert_eq!(bytes_of(objects, &empty).await.unwrap().0.len(), 0);
    let large = Bytes::from((0..300_000u32).map(|n| n as u8).collect::<Vec<_>>());
    stored(objects.put(&name("large"), large.clone(), PutIf::Always).await);
    assert_eq!(bytes_of(objects, &name("large")).await.unwrap().0, large);

    // In the order of the bytes of whole names, whatever '/' means to a file system.
    let listed = ["l/a", "l/a-b", "l/a.b", "l/a/x", "l/a/y", "l/a0", "l/b/c/d"];
    for each in listed.iter().rev() {
        stored(objects.put(&name(each), one.clone(), PutIf::Absent).await);
    }
    let expected: Vec<String> = listed.iter().map(|each| name(each)).collect();
    for max in [1, 2, 3, 1000] {
        let mut got: Vec<String> = Vec::new();
        loop {
            let after = got.last().cloned();
            let part = objects.list(&name("l/"), after.as_deref(), max).await.unwrap();
            assert!(part.names.len() <= max && (!part.more || !part.names.is_empty()));
            got.extend(part.names);
            if !part.more {
                break;
            }
        }
        assert_eq!(got, expected, "{max} at a time");
    }
    let part = objects.list(&name("l/a/"), None, 10).await.unwrap();
    assert_eq!(part.names, [name("l/a/x"), name("l/a/y")]);
    let part = objects.list(&name("l/a"), Some(&name("l/a/x")), 10).await.unwrap();
    assert_eq!(part.names, [name("l/a/y"), name("l/a0")]);
    assert_eq!(objects.list(&name("none/"), None, 10).await.unwrap().names, [""; 0]);
}

/// Of many who swap the same object at once, exactly one wins each time.
pub(crate) async fn swaps(objects: &dyn Objects, base: &str, writers: usize, rounds: usize) {
    let name = format!("{base}/counter");
    stored(objects.put(&name, Bytes::from_static(b"0"), PutIf::Absent).await);
    let write = |writer: usize| {
        let name = name.clone();
        async move {
            for _ in 0..rounds {
                loop {
                    let (bytes, etag) = bytes_of(objects, &name).await.unwrap();
                    let text = String::from_utf8(bytes.to_vec()).unwrap();
                    let count: usize = text.split(' ').next().unwrap().parse().unwrap();
                    let next = format!("{} by {writer}", count + 1);
                    match objects.put(&name, next.into(), PutIf::Matches(etag)).await {
                        Put::Stored(_) => break,
                        Put::Refused | Put::Conflict => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    };
    futures::future::join_all((0..writers).map(write)).await;
    let (bytes, _) = bytes_of(objects, &name).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.starts_with(&format!("{} by", writers * rounds)), "{text}");
}

fn message(body: &str) -> ToSend {
    ToSend { body: Bytes::copy_from_slice(body.as_bytes()), ..ToSend::default() }
}

const HIDDEN: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(1);

/// Receives until nothing comes any more.
async fn drain(queue: &dyn Queue, name: &str, hidden: Duration) -> Vec<s3db::cloud::Message> {
    let mut all = Vec::new();
    loop {
        let some = queue.receive(name, 10, hidden, WAIT).await.unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// A standard queue.
pub(crate) async fn queue(queue: &dyn Queue, name: &str) {
    let settings = QueueSettings { fifo: false, retention: Duration::from_secs(14 * 24 * 3600) };
    assert!(queue.receive(name, 1, HIDDEN, Duration::ZERO).await.is_err(), "no such queue");
    queue.create(name, settings).await.unwrap();
    queue.create(name, settings).await.unwrap();

    let batch: Vec<ToSend> = (0..10).map(|n| message(&format!("m{n}"))).collect();
    assert!(queue.send(name, &batch).await.iter().all(|sent| *sent == Sent::Accepted));
    // Any byte is carried.
    let all: Vec<u8> = (0..=255).collect();
    let binary = ToSend { body: all.clone().into(), ..ToSend::default() };
    assert_eq!(queue.send(name, &[binary]).await, [Sent::Accepted]);

    let got = drain(queue, name, HIDDEN).await;
    let bodies: HashSet<Bytes> = got.iter().map(|message| message.body.clone()).collect();
    assert_eq!((got.len(), bodies.len()), (11, 11), "each once while hidden");
    assert!(bodies.contains(&Bytes::from(all)));
    assert!(got.iter().all(|message| message.receives == 1));

    // Given back at once, it comes again, and the old receipt is good for nothing.
    queue.change_visibility(name, &got[0].receipt, Duration::ZERO).await.unwrap();
    let again = drain(queue, name, HIDDEN).await;
    assert_eq!(again.len(), 1);
    assert_eq!((&again[0].body, again[0].receives), (&got[0].body, 2));

    let receipts: Vec<_> = got[1..].iter().map(|message| message.receipt.clone()).collect();
    for receipts in receipts.chunks(10) {
        queue.delete(name, receipts).await.unwrap();
    }
    queue.delete(name, &[again[0].receipt.clone()]).await.unwrap();
    assert_eq!(drain(queue, name, HIDDEN).await.len(), 0);
    assert_eq!(queue.depth(name).await.unwrap(), 0);

    // What is not deleted comes back when its time is over.
    assert_eq!(queue.send(name, &[message("back")]).await, [Sent::Accepted]);
    let short = Duration::from_secs(4);
    assert_eq!(queue.receive(name, 1, short, WAIT).await.unwrap().len(), 1);
    assert_eq!(queue.receive(name, 1, short, Duration::ZERO).await.unwrap().len(), 0);
    tokio::time::sleep(short + Duration::from_millis(200)).await;
    let back = queue.receive(name, 1, HIDDEN, WAIT).await.unwrap();
    assert_eq!((back.len(), back[0].receives), (1, 2));
    queue.delete(name, &[back[0].receipt.clone()]).await.unwrap();
}

/// An ordered queue.
pub(crate) async fn fifo(queue: &dyn Queue, name: &str) {
    let settings = QueueSettings { fifo: true, retention: Duration::from_secs(14 * 24 * 3600) };
    queue.create(name, settings).await.unwrap();
    let of = |group: &str, body: &str| ToSend {
        body: Bytes::copy_from_slice(body.as_bytes()),
        group: Some(group.to_owned()),
        deduplication: Some(format!("{group}-{body}")),
    };
    for body in ["1", "2", "3"] {
        for group in ["x", "y"] {
            // Sent twice, there once.
            for _ in 0..2 {
                assert_eq!(queue.send(name, &[of(group, body)]).await, [Sent::Accepted]);
            }
        }
    }
    let first = queue.receive(name, 1, HIDDEN, WAIT).await.unwrap();
    assert_eq!(first[0].body, "1");
    let group = first[0].group.clone().unwrap();
    // The rest of its group waits for it; the other group does not.
    let others = drain(queue, name, HIDDEN).await;
    assert!(others.iter().all(|message| message.group.as_ref() != Some(&group)), "{others:?}");
    let order: Vec<_> = others.iter().map(|message| message.body.clone()).collect();
    assert_eq!(order, ["1", "2", "3"]);
    queue.delete(name, &[first[0].receipt.clone()]).await.unwrap();
    let rest = drain(queue, name, HIDDEN).await;
    let order: Vec<_> = rest.iter().map(|message| message.body.clone()).collect();
    assert_eq!(order, ["2", "3"], "in order, when the first is gone");
    let receipts: Vec<_> =
        others.iter().chain(&rest).map(|message| message.receipt.clone()).collect();
    queue.delete(name, &receipts).await.unwrap();
    assert_eq!(queue.depth(name).await.unwrap(), 0);
}
