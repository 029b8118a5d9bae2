//! Faults of our own, on purpose: a test asks for a fault at a named place of the relay, and looks what becomes of it.
//!
//! Debug builds alone have them; otherwise nothing is left of a place. A fault is for one input or output, by its name, so
//! that tests beside each other do not meet. `TAPSTER_FAULTS` arms faults of a program: `place=name=after`, separated by
//! commas. A test may also [say](set_name) which addresses a name has.

use std::net::IpAddr;
#[cfg(debug_assertions)]
use std::sync::LazyLock;
#[cfg(debug_assertions)]
use std::sync::Mutex;
#[cfg(debug_assertions)]
use std::sync::PoisonError;

/// Whether this build has faults.
pub const ENABLED: bool = cfg!(debug_assertions);

#[cfg(debug_assertions)]
#[derive(Debug)]
struct Fault {
    place: String,
    of: String,
    // How often the place is passed before.
    after: u64,
}

#[cfg(debug_assertions)]
static ARMED: LazyLock<Mutex<Vec<Fault>>> = LazyLock::new(|| {
    let faults = std::env::var("TAPSTER_FAULTS").unwrap_or_default();
    let parse = |fault: &str| {
        let mut parts = fault.split('=').map(str::to_owned);
        let (place, of, after) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Fault { place, of, after: after.parse().ok()? })
    };
    Mutex::new(faults.split(',').filter_map(parse).collect())
});

/// Arms one fault: the input or output `of` this name passes the place `after` times, then it happens, once.
#[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "such a build has no faults"))]
pub fn arm(place: &str, of: &str, after: u64) {
    #[cfg(debug_assertions)]
    ARMED.lock().unwrap_or_else(PoisonError::into_inner).push(Fault {
        place: place.to_owned(),
        of: of.to_owned(),
        after,
    });
}

/// Whether a fault happens here and now.
#[cfg(debug_assertions)]
pub(crate) fn hit(place: &str, of: &str) -> bool {
    let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(index) = armed.iter().position(|fault| fault.place == place && fault.of == of) else {
        return false;
    };
    let happens = armed[index].after == 0;
    if happens {
        armed.remove(index);
    } else {
        armed[index].after -= 1;
    }
    happens
}

/// Whether a fault happens here and now.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn hit(_: &str, _: &str) -> bool {
    false
}

/// Names that no name server knows, with their addresses.
#[cfg(debug_assertions)]
static NAMES: Mutex<Vec<(String, Vec<IpAddr>)>> = Mutex::new(Vec::new());

/// Gives a name these addresses, for all lookups of this process from now on. Without any, it is not found.
#[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "such a build has no faults"))]
pub fn set_name(host: &str, addresses: &[IpAddr]) {
    #[cfg(debug_assertions)]
    {
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|(name, _)| name != host);
        names.push((host.to_owned(), addresses.to_vec()));
    }
}

/// The addresses that a test has given to this name.
#[cfg(debug_assertions)]
pub(crate) fn addresses_of(host: &str) -> Option<Vec<IpAddr>> {
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.iter().find(|(name, _)| name == host).map(|(_, addresses)| addresses.clone())
}

/// The addresses that a test has given to this name.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn addresses_of(_: &str) -> Option<Vec<IpAddr>> {
    None
}

/// A place where a test may ask for a panic.
#[inline]
pub(crate) fn point(place: &str, of: &str) {
    assert!(!hit(place, of), "on purpose: {place} of {of}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_happens_once_at_its_place_and_to_its_input_or_output_alone() {
        if !ENABLED {
            return;
        }
        arm("a place", "faults", 1);
        assert!(!hit("another place", "faults") && !hit("a place", "another"));
        let happened: Vec<bool> = (0..4).map(|_| hit("a place", "faults")).collect();
        assert_eq!(happened, [false, true, false, false]);
    }
}
