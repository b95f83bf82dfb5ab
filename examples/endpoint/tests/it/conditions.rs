//! Conditions on reads and writes, alone and against each other.

use aws_sdk_s3::primitives::ByteStream;

use crate::{client, fast, refused, run};

#[test]
fn reads_hold_to_the_tag() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let put = client.put_object().bucket("box").key("k").body(ByteStream::from_static(b"one"));
        let tag = put.send().await.unwrap().e_tag().unwrap().to_owned();
        let get = || client.get_object().bucket("box").key("k");
        let head = || client.head_object().bucket("box").key("k");

        get().if_match(&tag).range("bytes=0-0").send().await.unwrap();
        get().if_none_match("\"other\"").send().await.unwrap();
        head().if_match(&tag).send().await.unwrap();
        let cases = [
            ("get, other tag", get().if_match("\"other\"").send().await.map(drop), 412),
            ("get, same tag", get().if_none_match(&tag).send().await.map(drop), 304),
        ];
        for (what, got, status) in cases {
            assert_eq!(refused(got.unwrap_err()).0, status, "{what}");
        }
        let cases = [
            ("head, other tag", head().if_match("\"other\"").send().await.map(drop), 412),
            ("head, same tag", head().if_none_match(&tag).send().await.map(drop), 304),
        ];
        for (what, got, status) in cases {
            assert_eq!(refused(got.unwrap_err()).0, status, "{what}");
        }
        // A connection that answered 304 without a body still serves.
        get().if_match(&tag).send().await.unwrap();
    });
}

#[test]
fn writes_hold_to_their_condition() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let put = || client.put_object().bucket("box").key("k").body(ByteStream::from_static(b"x"));

        let missing = put().if_match("\"any\"").send().await.unwrap_err();
        assert_eq!(refused(missing), (404, "NoSuchKey".into()));
        let first = put().if_none_match("*").send().await.unwrap();
        let there = put().if_none_match("*").send().await.unwrap_err();
        assert_eq!(refused(there), (412, "PreconditionFailed".into()));
        let other = put().if_match("\"other\"").send().await.unwrap_err();
        assert_eq!(refused(other), (412, "PreconditionFailed".into()));
        put().if_match(first.e_tag().unwrap()).send().await.unwrap();
        let delete = client.delete_object().bucket("box").key("k");
        let delete = delete.if_match("\"other\"").send().await.unwrap_err();
        assert_eq!(refused(delete), (412, "PreconditionFailed".into()));
    });
}

#[test]
fn of_many_creators_exactly_one_wins() {
    const WRITERS: usize = 32;
    run(async {
        let endpoint = fast();
        for round in 0..10 {
            let key = format!("k{round}");
            let writers = (0..WRITERS).map(|writer| {
                // A client each, so that each has a connection of its own.
                let client = client(&endpoint);
                let key = key.clone();
                tokio::spawn(async move {
                    let body = ByteStream::from(writer.to_string().into_bytes());
                    let put = client.put_object().bucket("box").key(key).if_none_match("*");
                    put.body(body).send().await.map(drop)
                })
            });
            let mut winners = Vec::new();
            for (writer, task) in futures::future::join_all(writers).await.into_iter().enumerate() {
                match task.unwrap() {
                    Ok(()) => winners.push(writer),
                    Err(error) => {
                        assert_eq!(refused(error), (412, "PreconditionFailed".into()));
                    }
                }
            }
            assert_eq!(winners.len(), 1, "round {round}: {winners:?} won");
            let kept = endpoint.store().get("box", &key).unwrap();
            assert_eq!(kept.bytes, winners[0].to_string().as_bytes());
        }
    });
}

#[test]
fn compare_and_swap_loses_no_update() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 20;
    run(async {
        let endpoint = fast();
        let start = client(&endpoint).put_object().bucket("box").key("n");
        start.body(ByteStream::from_static(b"0")).send().await.unwrap();
        let writers = (0..WRITERS).map(|_| {
            let client = client(&endpoint);
            tokio::spawn(async move {
                let mut done = 0;
                while done < EACH {
                    let got = client.get_object().bucket("box").key("n").send().await.unwrap();
                    let tag = got.e_tag().unwrap().to_owned();
                    let text = got.body.collect().await.unwrap().into_bytes();
                    let value: u64 = std::str::from_utf8(&text).unwrap().parse().unwrap();
                    let put = client.put_object().bucket("box").key("n").if_match(tag);
                    let body = ByteStream::from((value + 1).to_string().into_bytes());
                    match put.body(body).send().await {
                        Ok(_) => done += 1,
                        Err(error) => assert_eq!(refused(error).0, 412),
                    }
                }
            })
        });
        for task in futures::future::join_all(writers).await {
            task.unwrap();
        }
        let kept = endpoint.store().get("box", "n").unwrap();
        assert_eq!(kept.bytes, (WRITERS * EACH).to_string().as_bytes());
    });
}
