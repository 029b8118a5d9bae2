//! What a process says to the one that takes over from it, or has taken over.

use tapster::relay::message_again;

use super::memory::no_more_than_given;

/// A message is refused, or it is the same one after it was taken and said again. Another version is refused.
pub(crate) fn handover(input: &[u8]) {
    let given = input.to_vec();
    let Some(again) = no_more_than_given(input.len(), || message_again(given)) else { return };
    assert!(input.starts_with(&1u32.to_be_bytes()), "a message of another version was taken");
    assert_eq!(
        message_again(again.clone()).as_ref(),
        Some(&again),
        "it says something else when it is said again"
    );
    let mut newer = again;
    newer[3] = 2;
    assert_eq!(message_again(newer), None);
}
