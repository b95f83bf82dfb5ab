//! Answers that go wrong reach the client as what they are.

use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::ByteStream;
use endpoint::{
    Endpoint, Settings,
    faults::{Fault, Mode},
    line::Shape,
};

use crate::{client, fast, noise, refused, run};

#[test]
fn each_mode_does_what_it_says() {
    run(async {
        let endpoint = fast();
        // A client for each request: one that kept connections could meet one that a fault closed.
        let client = || client(&endpoint);
        let body = noise(100_000);
        let put =
            || client().put_object().bucket("box").key("k").body(ByteStream::from_static(b"x"));
        let get = || client().get_object().bucket("box").key("k").send();
        let once = |mode| endpoint.faults().set(Some(Fault::always(mode).times(1)));

        once(Mode::SlowDown);
        assert_eq!(refused(put().send().await.unwrap_err()), (503, "SlowDown".into()));
        once(Mode::InternalError);
        assert_eq!(refused(put().send().await.unwrap_err()), (500, "InternalError".into()));
        once(Mode::Close);
        put().send().await.unwrap_err();
        assert!(endpoint.store().get("box", "k").is_err(), "a closed request did nothing");
        once(Mode::CloseAfter);
        put().send().await.unwrap_err();
        assert!(endpoint.store().get("box", "k").is_ok(), "it was done, and nobody heard of it");

        let put = client().put_object().bucket("box").key("k").body(ByteStream::from(body.clone()));
        put.send().await.unwrap();
        once(Mode::Truncate(70_000));
        get().await.unwrap().body.collect().await.unwrap_err();
        once(Mode::Corrupt(70_000));
        let got = get().await.unwrap().body.collect().await.unwrap().into_bytes();
        let wrong: Vec<_> = (0..body.len()).filter(|&at| got[at] != body[at]).collect();
        assert_eq!(wrong, [70_000]);
        once(Mode::Stall(Duration::from_millis(200)));
        let began = Instant::now();
        get().await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(200));

        let got = get().await.unwrap().body.collect().await.unwrap().into_bytes();
        assert!(got == body, "spent faults leave answers alone");
    });
}

#[test]
fn the_switch_is_there_only_where_it_was_asked_for() {
    run(async {
        let settings = |fault_switch| Settings {
            fault_switch,
            anonymous_reads: true,
            shape: Shape::UNSHAPED,
            ..Settings::default()
        };
        let open = Endpoint::start(settings(true)).unwrap();
        open.store().create_bucket("box").unwrap();
        open.store().put("box", "k", "x".into(), Default::default(), &Default::default()).unwrap();
        let status = async |path: &str| {
            let answer = reqwest::get(format!("{}{path}", open.url())).await.unwrap();
            answer.status().as_u16()
        };
        assert_eq!(status("/__fault?mode=503&n=1&match=GET%20/box/").await, 200);
        assert_eq!(status("/box/k").await, 503);
        assert_eq!(status("/box/k").await, 200);
        assert_eq!(status("/__fault?mode=melt").await, 400);

        let shut = Endpoint::start(settings(false)).unwrap();
        let answer = reqwest::get(format!("{}/__fault?mode=503", shut.url())).await.unwrap();
        assert_ne!(answer.status().as_u16(), 200);
    });
}
