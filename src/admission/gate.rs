//! How many connections of an input or output are open, on all workers: together and from each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// The open connections of one input or output.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: AtomicUsize,
    // Where the input has a limit for each: addresses with connections, and no others.
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection among the open ones. Dropped, it has ended.
#[derive(Debug)]
pub(crate) struct Slot {
    gate: Arc<Gate>,
    address: Option<IpAddr>,
}

impl Gate {
    /// Counts a connection, and returns how many were open before.
    pub(crate) fn enter(self: &Arc<Self>) -> (Slot, usize) {
        let before = self.open.fetch_add(1, Relaxed);
        (Slot { gate: Arc::clone(self), address: None }, before)
    }
}

impl Slot {
    /// Counts the connection among those of its address, unless there are as many as there may be. Returns whether there was
    /// room.
    pub(crate) fn take_one_of(&mut self, address: IpAddr, connections_max: usize) -> bool {
        let address = counted_as(address);
        let mut addresses = self.gate.addresses.lock().expect(UNPOISONED);
        let open = addresses.get(&address).copied().unwrap_or_default();
        if open >= connections_max {
            return false;
        }
        addresses.insert(address, open + 1);
        self.address = Some(address);
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.open.fetch_sub(1, Relaxed);
        let Some(address) = self.address else { return };
        let mut addresses = self.gate.addresses.lock().expect(UNPOISONED);
        if let Some(open) = addresses.get_mut(&address) {
            *open -= 1;
            if *open == 0 {
                addresses.remove(&address);
            }
        }
    }
}

/// A host of IPv6 has a whole /64 to choose its addresses from: it counts as one.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(gate: &Arc<Gate>, address: &str, max: usize) -> Option<Slot> {
        let (mut slot, _) = gate.enter();
        slot.take_one_of(address.parse().unwrap(), max).then_some(slot)
    }

    #[test]
    fn an_address_has_its_own_limit_and_nothing_is_kept_of_addresses_that_have_gone() {
        let gate = Arc::<Gate>::default();
        let first = enter(&gate, "192.0.2.1", 2).unwrap();
        let _second = enter(&gate, "::ffff:192.0.2.1", 2).unwrap();
        assert!(enter(&gate, "192.0.2.1", 2).is_none());
        assert!(enter(&gate, "192.0.2.2", 2).is_some());
        drop(first);
        let _third = enter(&gate, "192.0.2.1", 2).unwrap();
        assert_eq!(gate.enter().1, 2);
        for number in 0..1000u32 {
            enter(&gate, &Ipv6Addr::from(u128::from(number) << 64).to_string(), 1).unwrap();
        }
        assert_eq!(gate.addresses.lock().unwrap().len(), 1);
    }

    #[test]
    fn addresses_of_one_64_count_together() {
        let gate = Arc::<Gate>::default();
        let _first = enter(&gate, "2001:db8::1", 1).unwrap();
        assert!(enter(&gate, "2001:db8:0:0:ffff::2", 1).is_none());
        assert!(enter(&gate, "2001:db8:0:1::1", 1).is_some());
    }

    #[test]
    fn a_refusal_leaves_no_trace() {
        let gate = Arc::<Gate>::default();
        assert!(enter(&gate, "192.0.2.1", 0).is_none());
        assert_eq!(gate.open.load(Relaxed), 0);
        assert_eq!(gate.addresses.lock().unwrap().len(), 0);
    }
}
