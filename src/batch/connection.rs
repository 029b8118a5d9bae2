//! Which connection brought a batch.

/// Number of the connection that brought a batch. A spool keeps it with the batch, over restarts too.
///
/// The number has 31 bits: a record on disk has no room for more. 0 where nobody has told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u32);

impl ConnectionId {
    /// The largest number.
    pub const MAX: Self = Self(u32::MAX >> 1);

    /// The connection of this number. Of a number above [`ConnectionId::MAX`] the lower 31 bits count.
    pub const fn new(number: u32) -> Self {
        Self(number & Self::MAX.0)
    }

    /// The number, at most that of [`ConnectionId::MAX`].
    pub const fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_too_large_loses_its_upper_bit() {
        assert_eq!(ConnectionId::new(7).get(), 7);
        assert_eq!(ConnectionId::new(u32::MAX), ConnectionId::MAX);
        assert_eq!(ConnectionId::new(1 << 31), ConnectionId::default());
    }
}
