//! The contract of an eviction policy.

/// Chooses which resident entry to give up when the budget is short.
///
/// - **Shape.** For one key the calls are always `installed`, any number of `touched`, then
///   `removed`. A key never offered by `installed` is never named again. The same key may be
///   installed again later: a policy that keeps ghosts recognises it.
/// - **Keys.** Opaque. Neighbouring keys need not be neighbouring bytes.
/// - **Weights.** Bytes, at least 1, fixed from `installed` to `removed`.
/// - **What it can see.** Faults, loads and hints. A read that hits a mapped unit does not enter
///   the kernel, so it is invisible here; do not expect `touched` once per access.
/// - **Errors.** None. `None` from `victim` means that nothing may be evicted now.
/// - **Cost.** Amortised constant time, but for `victim`, which may pass over every entry that
///   `can_evict` refuses, once.
/// - **Source.** Each implementation opens with the paper or program that it follows.
pub trait EvictionPolicy: Send {
    /// The entry `key` of `weight` bytes became resident. `speculative`: nobody has asked for it.
    fn installed(&mut self, key: u64, weight: u64, speculative: bool);

    /// Somebody asked for the resident entry `key`.
    fn touched(&mut self, key: u64);

    /// The entry `key` left, for whatever reason: evicted, discarded by a hint, its owner closed.
    fn removed(&mut self, key: u64);

    /// Names a resident entry for which `can_evict` holds, or `None` if there is none.
    ///
    /// The entry stays in the policy until `removed`. When the eviction fails after all (somebody
    /// pinned it in between), `removed` does not come, and the next call may name it again.
    fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64>;

    /// Number of resident entries that the policy knows.
    fn len(&self) -> usize;

    /// Whether the policy knows no resident entry.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
