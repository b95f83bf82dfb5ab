//! Installs that the kernel does in part. `UFFDIO_COPY` stops where a page is there already: it says how far it
//! came, and what is left has to be asked for. A count that is not honoured leaves holes that read as zeros,
//! or old bytes.

use std::sync::Arc;

use super::{
    Mapping, ModeRequest, PAGE, Traits, open_descriptor,
    port::{CopyPort, Port},
    uffd,
};
use crate::frame::Frame;

const TRAITS: Traits = Traits { poison: true, frees_tables: true };

fn bytes_of(round: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / PAGE * 7 + at + round) as u8).collect()
}

fn seen(mapping: &Mapping, len: usize) -> &[u8] {
    // SAFETY: the caller has just installed these bytes, and nobody discards them while it looks.
    unsafe { std::slice::from_raw_parts(mapping.base().as_ptr(), len) }
}

/// At every count of pages: the kernel stops in front of a page that is there, and is asked again.
#[test]
fn a_copy_that_stops_after_any_number_of_pages_is_whole_in_the_end() {
    const PAGES: usize = 16;
    let Some(uffd) = open_descriptor(ModeRequest::Auto).descriptor.map(Arc::new) else {
        return println!("left out: page faults");
    };
    let mapping = Mapping::reserve(2 << 20, 2 << 20).unwrap();
    uffd.register(mapping.addr(), mapping.len()).unwrap();
    let port = CopyPort::new(uffd.clone(), TRAITS);
    let (len, old) = (PAGES * PAGE, Frame::with_capacity(PAGE));
    for stop in 1..PAGES {
        // SAFETY: a page of this test's mapping, which nobody looks at.
        let put = unsafe { uffd.copy(mapping.addr() + stop * PAGE, old.addr(), PAGE, false) };
        assert_eq!(put, Ok(PAGE));
        let bytes = bytes_of(stop, len);
        let mut frame = Frame::with_capacity(len);
        frame.put(&bytes);
        let before = uffd::partial();
        port.install(&mapping, 0, frame).unwrap();
        assert_eq!(uffd::partial(), before + 1, "stop {stop}: the kernel said how far it came");
        assert!(seen(&mapping, len) == bytes, "stop {stop}");
        mapping.discard(0, len).unwrap();
    }
}
