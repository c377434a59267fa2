//! What an order of devices by time can do; [`crate::calendar`] and [`crate::heap`] are two.

use serde::{Deserialize, Serialize};

/// Keys are ticks of this many nanoseconds; a time is rounded up, so that nothing is early.
///
/// Half a microsecond: two roundings of a guarantee (from when, and by when) stay near one
/// microsecond, and 64^3 ticks still reach 134 ms ahead.
pub(crate) const TICK_NANOS: u64 = 512;

/// The first tick that does not begin before `nanos`.
pub(crate) fn tick_after(nanos: u64) -> u64 {
    nanos.div_ceil(TICK_NANOS)
}

/// The tick that `nanos` lies in.
pub(crate) fn tick_of(nanos: u64) -> u64 {
    nanos / TICK_NANOS
}

/// When a tick begins.
pub(crate) fn tick_begin(tick: u64) -> u64 {
    tick.saturating_mul(TICK_NANOS)
}

/// The number of a device or VM as an index.
pub(crate) fn index(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

/// Makes `list` as long as ids up to `id` need. It grows by a sixteenth, not to the double: each
/// device pays for what is left empty.
pub(crate) fn make_room<V: Clone>(list: &mut Vec<V>, id: u32, value: V) {
    let len = index(id) + 1;
    if len > list.capacity() {
        list.reserve_exact((len - list.len()).max(list.len() / 16));
    }
    if len > list.len() {
        list.resize(len, value);
    }
}

/// Small numbers ordered by tick, least first.
pub(crate) trait Order {
    /// Makes room for `id`, so that [`Order::set`] does not allocate while frames pass.
    fn reserve(&mut self, id: u32);

    /// Inserts `id`, or moves it to its new tick. An id that is at `tick` already keeps its turn.
    fn set(&mut self, id: u32, tick: u64);

    /// Removes `id` if it is there.
    fn remove(&mut self, id: u32);

    /// The least tick and whose it is.
    fn least(&self) -> Option<(u64, u32)>;

    /// Whether nobody is in it.
    fn is_empty(&self) -> bool;
}

/// Where a device stands beside the share order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Station {
    #[default]
    Nowhere,
    /// A limit holds it.
    Limited,
    /// It has a reservation, which is waiting or urgent.
    Reserved,
}

/// The orders of a set of devices that share something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tier<Q> {
    /// Those that may send, by `v`.
    pub(crate) share: Q,
    /// Those of them with a reservation that is not due yet, by eligible time.
    pub(crate) waiting: Q,
    /// Those of them with a reservation that is due, by deadline.
    pub(crate) urgent: Q,
    /// Those that reached a limit, by the time it releases them.
    pub(crate) limited: Q,
    /// The deadlines of those that wait, by id: with them waiting becomes urgent without a look at
    /// the device, which with many devices costs more than everything else.
    pub(crate) deadlines: Vec<u64>,
}

impl<Q: Order> Tier<Q> {
    pub(crate) fn reserve(&mut self, id: u32) {
        self.share.reserve(id);
        self.waiting.reserve(id);
        self.urgent.reserve(id);
        self.limited.reserve(id);
        make_room(&mut self.deadlines, id, 0);
    }

    /// Takes `id` out of every order.
    pub(crate) fn leave(&mut self, id: u32) {
        self.share.remove(id);
        self.waiting.remove(id);
        self.urgent.remove(id);
        self.limited.remove(id);
    }

    /// Moves those whose reservation is due by `tick` from waiting to urgent.
    pub(crate) fn take_due(&mut self, tick: u64) {
        while let Some((due, id)) = self.waiting.least()
            && due <= tick
        {
            self.waiting.remove(id);
            let deadline = self.deadlines.get(index(id)).copied().unwrap_or(due);
            self.urgent.set(id, deadline);
        }
    }

    /// Lets `id` wait until `due` for its turn by `deadline`.
    pub(crate) fn wait(&mut self, id: u32, due: u64, deadline: u64) {
        if let Some(known) = self.deadlines.get_mut(index(id)) {
            *known = deadline;
        }
        self.waiting.set(id, due);
    }
}
