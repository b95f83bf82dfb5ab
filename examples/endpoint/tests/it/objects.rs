//! Reads by range, listings, multipart uploads.

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};

use crate::{client, fast, noise, refused, run};

#[test]
fn ranges_are_answered_as_s3_answers_them() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let body = noise(1_000);
        let put = client.put_object().bucket("box").key("k").body(ByteStream::from(body.clone()));
        put.send().await.unwrap();

        let cases = [
            ("bytes=0-0", 0..1, "bytes 0-0/1000"),
            ("bytes=10-19", 10..20, "bytes 10-19/1000"),
            ("bytes=990-", 990..1000, "bytes 990-999/1000"),
            ("bytes=990-5000", 990..1000, "bytes 990-999/1000"),
            ("bytes=-5", 995..1000, "bytes 995-999/1000"),
            ("bytes=-5000", 0..1000, "bytes 0-999/1000"),
        ];
        for (range, expected, content_range) in cases {
            let got = client.get_object().bucket("box").key("k").range(range).send().await.unwrap();
            assert_eq!(got.content_range(), Some(content_range), "{range}");
            assert_eq!(got.content_length(), Some(expected.len() as i64), "{range}");
            let bytes = got.body.collect().await.unwrap().into_bytes();
            assert_eq!(bytes, body[expected], "{range}");
        }
        for range in ["bytes=1000-", "bytes=1000-1001", "bytes=-0"] {
            let got = client.get_object().bucket("box").key("k").range(range).send().await;
            assert_eq!(refused(got.unwrap_err()), (416, "InvalidRange".into()), "{range}");
        }
    });
}

#[test]
fn what_is_missing_has_a_name() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let got = client.get_object().bucket("box").key("none").send().await.unwrap_err();
        assert_eq!(refused(got), (404, "NoSuchKey".into()));
        let got = client.get_object().bucket("none").key("k").send().await.unwrap_err();
        assert_eq!(refused(got), (404, "NoSuchBucket".into()));
        let got = client.head_object().bucket("box").key("none").send().await.unwrap_err();
        assert_eq!(refused(got).0, 404);
        let got = client.head_bucket().bucket("none").send().await.unwrap_err();
        assert_eq!(refused(got).0, 404);
        let put = client.put_object().bucket("none").key("k").body(ByteStream::from_static(b"x"));
        assert_eq!(refused(put.send().await.unwrap_err()), (404, "NoSuchBucket".into()));
        let got = client.get_object().bucket("box").key("k").version_id("v1").send().await;
        assert_eq!(refused(got.unwrap_err()), (404, "NoSuchVersion".into()));
    });
}

#[test]
fn headers_and_type_come_back() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let put = client.put_object().bucket("box").key("a b/ä+%").content_type("text/x");
        put.metadata("stamp", "7").body(ByteStream::from_static(b"x")).send().await.unwrap();
        let head = client.head_object().bucket("box").key("a b/ä+%").send().await.unwrap();
        assert_eq!(head.content_type(), Some("text/x"));
        assert_eq!(head.content_length(), Some(1));
        // MD5 of "x".
        assert_eq!(head.e_tag(), Some("\"9dd4e461268c8034f5c8564e155c67a6\""));
        assert_eq!(head.metadata().and_then(|meta| meta.get("stamp")).unwrap(), "7");
    });
}

#[test]
fn every_checksum_is_checked() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let algorithms = [
            ChecksumAlgorithm::Crc32,
            ChecksumAlgorithm::Crc32C,
            ChecksumAlgorithm::Crc64Nvme,
            ChecksumAlgorithm::Sha1,
            ChecksumAlgorithm::Sha256,
        ];
        for algorithm in algorithms {
            let put = client.put_object().bucket("box").key(algorithm.as_str());
            let put = put.checksum_algorithm(algorithm).body(ByteStream::from(noise(70_000)));
            put.send().await.unwrap();
        }
        // The checksum of something else.
        let put = client.put_object().bucket("box").key("wrong").checksum_crc32("AAAAAA==");
        let put = put.body(ByteStream::from_static(b"x")).send().await.unwrap_err();
        assert_eq!(refused(put), (400, "BadDigest".into()));
        let got = client.head_object().bucket("box").key("wrong").send().await.unwrap_err();
        assert_eq!(refused(got).0, 404);
    });
}

#[test]
fn listings_page_through_keys_and_prefixes() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        for key in ["a", "d/1", "d/2", "d/e/3", "d0", "z"] {
            let put =
                client.put_object().bucket("box").key(key).body(ByteStream::from_static(b"x"));
            put.send().await.unwrap();
        }
        // (prefix, delimiter, keys, common prefixes)
        let cases: [(&str, &str, &[&str], &[&str]); 4] = [
            ("", "", &["a", "d/1", "d/2", "d/e/3", "d0", "z"], &[]),
            ("", "/", &["a", "d0", "z"], &["d/"]),
            ("d/", "/", &["d/1", "d/2"], &["d/e/"]),
            ("no", "/", &[], &[]),
        ];
        for (prefix, delimiter, keys, prefixes) in cases {
            for page in [1, 2, 1000] {
                let (mut got_keys, mut got_prefixes, mut token) = (vec![], vec![], None);
                loop {
                    let list = client.list_objects_v2().bucket("box").prefix(prefix).max_keys(page);
                    let list = list.set_continuation_token(token);
                    let list = list.delimiter(delimiter).send().await.unwrap();
                    assert!(list.key_count().unwrap() <= page);
                    got_keys.extend(list.contents().iter().map(|o| o.key().unwrap().to_owned()));
                    let common = list.common_prefixes().iter();
                    got_prefixes.extend(common.map(|p| p.prefix().unwrap().to_owned()));
                    token = list.next_continuation_token().map(str::to_owned);
                    assert_eq!(list.is_truncated(), Some(token.is_some()));
                    if token.is_none() {
                        break;
                    }
                }
                let what = format!("prefix {prefix:?} delimiter {delimiter:?} page {page}");
                assert_eq!(got_keys, keys, "{what}");
                assert_eq!(got_prefixes, prefixes, "{what}");
            }
        }
    });
}

#[test]
fn parts_join_in_order_into_one_object() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let body = noise((5 << 20) + 1000);
        let begun = client.create_multipart_upload().bucket("box").key("k").send().await.unwrap();
        let id = begun.upload_id().unwrap();
        let mut parts = Vec::new();
        // The last part first: the numbers decide.
        for (number, range) in [(2, 5 << 20..body.len()), (1, 0..5 << 20)] {
            let part = client.upload_part().bucket("box").key("k").upload_id(id);
            let part = part.part_number(number).body(ByteStream::from(body[range].to_vec()));
            let part = part.send().await.unwrap();
            let part = CompletedPart::builder().part_number(number).e_tag(part.e_tag().unwrap());
            parts.insert(0, part.build());
        }
        let complete = |parts: Vec<CompletedPart>| {
            let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
            let complete = client.complete_multipart_upload().bucket("box").key("k").upload_id(id);
            complete.multipart_upload(upload).if_none_match("*").send()
        };
        let reversed = parts.iter().rev().cloned().collect();
        let refusal = refused(complete(reversed).await.unwrap_err());
        assert_eq!(refusal, (400, "InvalidPartOrder".into()));

        let done = complete(parts.clone()).await.unwrap();
        assert!(done.e_tag().unwrap().ends_with("-2\""), "{:?}", done.e_tag());
        let got = client.get_object().bucket("box").key("k").send().await.unwrap();
        assert_eq!(got.e_tag(), done.e_tag());
        assert!(got.body.collect().await.unwrap().into_bytes() == body, "other bytes");
        let again = refused(complete(parts).await.unwrap_err());
        assert_eq!(again, (404, "NoSuchUpload".into()));
    });
}

#[test]
fn parts_are_copied_from_objects_under_a_condition() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        let body = noise((6 << 20) + 77);
        let key = "a key/with +%";
        let put = client.put_object().bucket("box").key(key).body(ByteStream::from(body.clone()));
        let tag = put.send().await.unwrap().e_tag().unwrap().to_owned();
        let begun = client.create_multipart_upload().bucket("box").key("k").send().await.unwrap();
        let id = begun.upload_id().unwrap();
        assert_eq!(endpoint.store().open_uploads(), 1);
        let copy = |number| {
            let copy = client.upload_part_copy().bucket("box").key("k").upload_id(id);
            copy.part_number(number).copy_source("box/a%20key/with%20%2B%25")
        };
        let whole = copy(1).copy_source_if_match(&tag).send().await.unwrap();
        let part = copy(2).copy_source_range("bytes=5-1000").send().await.unwrap();
        for (what, refusal, expected) in [
            ("tag", copy(3).copy_source_if_match("\"other\"").send().await, 412),
            ("range", copy(3).copy_source_range("bytes=5-9999999").send().await, 416),
            ("form", copy(3).copy_source_range("bytes=5-").send().await, 400),
            ("source", copy(3).copy_source("box/none").send().await, 404),
            ("version", copy(3).copy_source("box/k?versionId=7").send().await, 404),
        ] {
            assert_eq!(refused(refusal.unwrap_err()).0, expected, "{what}");
        }
        let parts = [whole, part].into_iter().zip(1..).map(|(answer, number)| {
            let tag = answer.copy_part_result().unwrap().e_tag().unwrap().to_owned();
            CompletedPart::builder().part_number(number).e_tag(tag).build()
        });
        let upload = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
        let complete = client.complete_multipart_upload().bucket("box").key("k").upload_id(id);
        let complete = complete.multipart_upload(upload);
        let refusal = complete.clone().if_match("\"other\"").send().await.unwrap_err();
        assert_eq!(refused(refusal), (404, "NoSuchKey".into()));
        complete.send().await.unwrap();
        assert_eq!(endpoint.store().open_uploads(), 0);
        let kept = endpoint.store().get("box", "k").unwrap();
        assert!(kept.bytes == [&body[..], &body[5..1001]].concat());
    });
}

#[test]
fn buckets_come_and_go() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        client.create_bucket().bucket("other").send().await.unwrap();
        let again = client.create_bucket().bucket("other").send().await.unwrap_err();
        assert_eq!(refused(again), (409, "BucketAlreadyOwnedByYou".into()));
        let put = client.put_object().bucket("other").key("k").body(ByteStream::from_static(b"x"));
        put.send().await.unwrap();
        let full = client.delete_bucket().bucket("other").send().await.unwrap_err();
        assert_eq!(refused(full), (409, "BucketNotEmpty".into()));
        client.delete_object().bucket("other").key("k").send().await.unwrap();
        client.delete_bucket().bucket("other").send().await.unwrap();
        assert!(client.head_bucket().bucket("other").send().await.is_err());
    });
}
