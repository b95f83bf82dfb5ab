//! What puts units in place and takes them away, without ledger, engine and threads.
//!
//! For `benches/` alone, which measures what these cost by themselves, behind the feature `bench`. Not part
//! of the interface: it may change or go with any version.

use std::{io, sync::Arc};

use super::{
    FramePool, Mapping, Mechanism, ModeRequest, Next, PAGE, Port, Traits, mapping::HUGE,
    open_descriptor, port_for,
};
use crate::{
    budget::{Budget, Reservation},
    policy::Clock,
    pool::Pool,
};

/// A row of units, all absent in the beginning, and frames for them.
pub struct Units {
    port: Arc<dyn Port>,
    frames: FramePool,
    /// Of the units that are in place.
    charges: Vec<Option<Reservation>>,
    unit_bytes: usize,
    /// Unmapped before the descriptor, which `port` and `frames` hold, is closed.
    mapping: Option<Mapping>,
}

impl Units {
    /// Room for `units` units of `unit_bytes` bytes that `mechanism` puts in place.
    ///
    /// # Errors
    /// When the kernel or this user has no such mechanism, or no memory. [`Mechanism::Plain`] is refused: it
    /// writes where nothing is in place, which is a fault here, and nobody answers one; and so is
    /// [`Mechanism::Remap`], which is for faults of another kind.
    pub fn new(mechanism: Mechanism, unit_bytes: usize, units: usize) -> io::Result<Units> {
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        if matches!(mechanism, Mechanism::Plain | Mechanism::Remap) {
            return Err(unsupported());
        }
        let opened = open_descriptor(ModeRequest::Auto);
        if mechanism == Mechanism::Move && !opened.probe.can_move {
            return Err(unsupported());
        }
        let uffd = Arc::new(opened.descriptor.ok_or_else(unsupported)?);
        let cost = (unit_bytes + PAGE) as u64;
        // Two more, for the frames that units are copied from.
        let budget = Budget::new((units as u64 + 2) * cost);
        let pool = Pool::new(&budget, Box::new(Clock::new()));
        let frames = match mechanism {
            Mechanism::Move => FramePool::recycled(unit_bytes, &pool, uffd.clone())?,
            _ => FramePool::staging(unit_bytes, 2, &pool).ok_or_else(unsupported)?,
        };
        let mapping = Mapping::reserve((units * unit_bytes).next_multiple_of(HUGE), HUGE)?;
        if unit_bytes.is_multiple_of(HUGE) {
            // As a region does: a page moves whole, and takes its page table along.
            let _ = mapping.advise(0, mapping.len(), libc::MADV_HUGEPAGE);
        }
        uffd.register(mapping.addr(), mapping.len())?;
        let traits = Traits { poison: true, frees_tables: true };
        let port = port_for(mechanism, Some(uffd), Some(&frames), traits);
        let charges = (0..units).map(|_| None).collect();
        Ok(Units { port, frames, charges, unit_bytes, mapping: Some(mapping) })
    }

    fn mapping(&self) -> &Mapping {
        self.mapping.as_ref().expect("there until it is dropped")
    }

    /// Receives `bytes`, a whole unit, into a frame and puts it in place as the absent unit `at`.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// When `bytes` are no whole unit, or the unit is there.
    pub fn fill(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len() == self.unit_bytes && self.charges[at].is_none(), "one absent unit");
        let none = || io::Error::other("no frame");
        let cost = (self.unit_bytes + PAGE) as u64;
        let mut supply = self.frames.supply(1, cost).ok_or_else(none)?;
        let Next::Frame(mut frame) = self.frames.next(&mut supply, false) else {
            return Err(none());
        };
        frame.put(bytes);
        let charge = supply.charge(&mut frame).ok_or_else(none)?;
        self.port.install(self.mapping(), at * self.unit_bytes, frame)?;
        self.charges[at] = Some(charge);
        Ok(())
    }

    /// Takes the unit `at` away, which is in place.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// When the unit is absent.
    pub fn evict(&mut self, at: usize) -> io::Result<()> {
        let charge = self.charges[at].take().expect("a unit that is in place");
        let leaving = at * self.unit_bytes..(at + 1) * self.unit_bytes;
        self.port.evict(self.mapping(), leaving, None, (0, at as u64), charge)
    }

    /// The bytes of the units, all of which are in place.
    ///
    /// # Panics
    /// When one is absent: nobody would answer a fault.
    pub fn bytes(&self) -> &[u8] {
        assert!(self.charges.iter().all(Option::is_some), "all units are in place");
        let len = self.charges.len() * self.unit_bytes;
        // SAFETY: the range lies inside the mapping, which lives as long as `self`; every unit of it was
        // put in place, and only `&mut self` takes one away or puts another there.
        unsafe { std::slice::from_raw_parts(self.mapping().base().as_ptr(), len) }
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        drop(self.mapping.take());
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Mode, *};

    #[test]
    fn units_come_and_go_and_what_nobody_would_answer_is_refused() {
        let refused =
            Units::new(Mechanism::Plain, PAGE, 4).err().expect("nobody answers its faults");
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        let probe = open_descriptor(ModeRequest::Auto).probe;
        for (mechanism, unit) in [(Mechanism::Copy, PAGE), (Mechanism::Move, HUGE)] {
            let can_move = mechanism != Mechanism::Move || probe.can_move;
            if probe.mode == Mode::CheckedOnly || !can_move {
                println!("left out: {mechanism:?}: this kernel or user has no such thing");
                continue;
            }
            let mut units = Units::new(mechanism, unit, 4).unwrap();
            for round in 1..4u8 {
                (0..4).for_each(|at| units.fill(at, &vec![round; unit]).unwrap());
                assert!(units.bytes().iter().all(|&byte| byte == round), "{mechanism:?}");
                (0..4).for_each(|at| units.evict(at).unwrap());
            }
        }
    }
}
