//! Plain HTTP, with all its manners.

use endpoint::{Door, line::Shape};
use reqwest::{Client, RequestBuilder, redirect::Policy};

use crate::{fast, noise, run};

#[test]
fn each_path_has_its_manner() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let body = noise(50_000);
        std::fs::write(folder.path().join("a.bin"), &body).unwrap();
        let endpoint = fast();
        let files = Some(folder.path().to_owned());
        let door = Door { shape: Shape::UNSHAPED, files, ..Door::default() };
        let base = endpoint.open(door).unwrap();
        let web = Client::builder().redirect(Policy::none()).build().unwrap();
        let get = |path: &str| web.get(format!("{base}{path}"));
        let ask = async |request: RequestBuilder| {
            let answer = request.send().await.unwrap();
            let head = (answer.status().as_u16(), answer.headers().clone());
            (head.0, head.1, answer.bytes().await.unwrap())
        };

        let (status, headers, bytes) = ask(get("/a.bin").header("Range", "bytes=10-19")).await;
        assert_eq!((status, &bytes[..]), (206, &body[10..20]));
        assert_eq!(headers["content-range"], "bytes 10-19/50000");
        let tag = headers["etag"].to_str().unwrap().to_owned();
        let date = headers["last-modified"].to_str().unwrap().to_owned();

        let (status, headers, _) = ask(get("/a.bin").header("Range", "bytes=50000-")).await;
        assert_eq!((status, headers["content-range"].as_bytes()), (416, &b"bytes */50000"[..]));
        assert_eq!(ask(get("/a.bin").header("If-Match", "\"other\"")).await.0, 412);
        assert_eq!(ask(get("/a.bin").header("If-Match", &tag)).await.0, 200);
        assert_eq!(ask(get("/a.bin").header("If-None-Match", &tag)).await.0, 304);
        assert_eq!(ask(get("/a.bin").header("If-Modified-Since", &date)).await.0, 304);
        let ranged =
            |value: &str| get("/a.bin").header("Range", "bytes=0-0").header("If-Range", value);
        assert_eq!(ask(ranged(&tag)).await.0, 206);
        assert_eq!(ask(ranged("\"other\"")).await.0, 200);

        let (status, headers, bytes) =
            ask(get("/no-range/a.bin").header("Range", "bytes=0-0")).await;
        assert_eq!((status, bytes.len(), headers.get("accept-ranges")), (200, 50_000, None));
        let (status, headers, _) = ask(get("/no-etag/a.bin").header("Range", "bytes=0-0")).await;
        assert_eq!((status, headers.get("etag")), (206, None));
        let (_, headers, bytes) = ask(get("/chunked/a.bin")).await;
        assert_eq!((headers.get("content-length"), bytes.len()), (None, 50_000));
        let (_, headers, bytes) = ask(get("/gzip/a.bin").header("Accept-Encoding", "gzip")).await;
        assert_eq!(headers["content-encoding"], "gzip");
        assert!(headers["etag"].to_str().unwrap().starts_with("W/"));
        let mut plain = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut plain).unwrap();
        assert!(plain == body, "other bytes");
        let (status, headers, _) = ask(get("/redirect/a.bin")).await;
        assert_eq!((status, headers["location"].as_bytes()), (302, &b"/a.bin"[..]));
        assert_eq!(ask(get("/none")).await.0, 404);
        assert_eq!(ask(web.put(format!("{base}/a.bin"))).await.0, 405);
        let (status, headers, bytes) = ask(web.head(format!("{base}/a.bin"))).await;
        assert_eq!((status, bytes.len()), (200, 0));
        assert_eq!(headers["content-length"], "50000");
    });
}

#[test]
fn doors_lead_to_the_same_objects() {
    run(async {
        let endpoint = fast();
        let far = endpoint.open(Door { fault_switch: true, ..Door::default() }).unwrap();
        let near = crate::client(&endpoint);
        let far_client = crate::client_at(&far, "testtest");
        let put = near.put_object().bucket("box").key("k").body(noise(10).into());
        put.send().await.unwrap();
        let got = far_client.get_object().bucket("box").key("k").send().await.unwrap();
        assert_eq!(got.body.collect().await.unwrap().into_bytes(), noise(10));
        // Faults are the door's own.
        reqwest::get(format!("{far}/__fault?mode=500")).await.unwrap();
        far_client.get_object().bucket("box").key("k").send().await.unwrap_err();
        near.get_object().bucket("box").key("k").send().await.unwrap();
    });
}
