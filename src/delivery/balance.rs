//! Which member of a group gets a batch: a pure function of what it was told and of time.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

use crate::batch::connection::ConnectionId;

/// How the frames of a group are dealt out among its members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// In turn, by bytes and weight. Members that have no room are left out.
    #[default]
    RoundRobin,
    /// To the member with the fewest bytes waiting for it, by weight; in turn among equals.
    LeastBacklog,
    /// To the first member that is there, in the order of the configuration. Keeps the order of each writer connection.
    Failover,
    /// Each writer connection to a member of its own as long as that is there. Keeps the order of each connection.
    Sticky,
}

impl Balance {
    /// Whether the frames of one writer connection stay in order.
    pub(crate) fn keeps_order(self) -> bool {
        matches!(self, Self::Failover | Self::Sticky)
    }
}

/// The seats of a group, and who sits where.
#[derive(Debug)]
pub(crate) struct Balancer {
    balance: Balance,
    slow_start: Duration,
    // A member has room while less than this waits for it.
    room: u64,
    members: Vec<Seat>,
    // Work per weight that the member served last had had before: those that come back begin there.
    turn: f64,
    // For policies that keep order.
    connections: HashMap<ConnectionId, Seen>,
    sweep_at: usize,
}

/// One member.
#[derive(Clone, Debug)]
struct Seat {
    weight: f64,
    up: bool,
    was_up: bool,
    // Since when its share grows.
    returned_at: Option<Instant>,
    // Bytes given, per weight.
    turn: f64,
    // Bytes given and not written.
    unwritten: u64,
    // Writer connections in `connections` whose home this is.
    homed: u32,
}

/// One writer connection.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The member that its frames go to.
    home: usize,
    /// The member that they went to before the first died, and go back to.
    native: usize,
    /// Batches given to its home and not written.
    unwritten: u32,
    used_at: Instant,
}

impl Balancer {
    /// A group whose members have these weights, none of which is up, and room for `room` bytes each.
    pub(crate) fn new(balance: Balance, weights: &[u32], room: u64, slow_start: Duration) -> Self {
        let seat = |weight: &u32| Seat {
            weight: f64::from(*weight),
            up: false,
            was_up: false,
            returned_at: None,
            turn: 0.0,
            unwritten: 0,
            homed: 0,
        };
        let members = weights.iter().map(seat).collect();
        let (turn, connections, sweep_at) = (0.0, HashMap::new(), SWEEP_MIN);
        Self { balance, slow_start, room, members, turn, connections, sweep_at }
    }

    /// Deals out in this way from now on, to the same members.
    pub(crate) fn reconfigure(&mut self, balance: Balance, weights: &[u32], room: u64, slow_start: Duration) {
        (self.balance, self.room, self.slow_start) = (balance, room, slow_start);
        for (seat, weight) in self.members.iter_mut().zip(weights) {
            let weight = f64::from(*weight);
            // Work per weight: what it has had stays what it was.
            seat.turn *= seat.weight / weight;
            seat.weight = weight;
        }
        self.turn = self.members.iter().map(|seat| seat.turn).fold(0.0, f64::max);
    }

    /// A member is there. One that `returns`, and was there before, is taken back gently: its share grows from a small part
    /// to the full one.
    pub(crate) fn up(&mut self, member: usize, now: Instant, returns: bool) {
        let seat = &mut self.members[member];
        seat.up = true;
        seat.returned_at = (returns && seat.was_up).then_some(now);
        seat.was_up = true;
        seat.turn = seat.turn.max(self.turn);
    }

    /// A member is gone.
    pub(crate) fn down(&mut self, member: usize) {
        self.members[member].up = false;
    }

    /// Whether any member could take a batch now.
    pub(crate) fn has_room(&self) -> bool {
        self.members.iter().any(|seat| self.seat_has_room(seat))
    }

    /// Gives a batch of `bytes` to a member. `None`: whoever may have it has no room, or nobody is there.
    pub(crate) fn give(&mut self, connection: ConnectionId, bytes: u64, now: Instant) -> Option<usize> {
        let member = match self.balance {
            Balance::RoundRobin | Balance::LeastBacklog => self.next(now),
            Balance::Failover | Balance::Sticky => self.home(connection, now),
        }?;
        let weight = self.weight(member, now);
        let lag = CATCH_UP / weight;
        let seat = &mut self.members[member];
        seat.turn = seat.turn.max(self.turn - lag);
        self.turn = self.turn.max(seat.turn);
        seat.turn += bytes as f64 / weight;
        self.unwritten(member, connection, bytes);
        Some(member)
    }

    /// Bytes that a member had were not written after all, or are to be written again.
    pub(crate) fn unwritten(&mut self, member: usize, connection: ConnectionId, bytes: u64) {
        self.members[member].unwritten += bytes;
        if let Some(connection) = self.connections.get_mut(&connection)
            && connection.home == member
        {
            connection.unwritten += 1;
        }
    }

    /// A member has written a batch, or given it back.
    pub(crate) fn written(&mut self, member: usize, connection: ConnectionId, bytes: u64) {
        self.members[member].unwritten -= bytes;
        if let Some(connection) = self.connections.get_mut(&connection)
            && connection.home == member
        {
            connection.unwritten = connection.unwritten.saturating_sub(1);
        }
    }

    /// Whether everything that was given is written.
    pub(crate) fn all_written(&self) -> bool {
        self.members.iter().all(|seat| seat.unwritten == 0)
    }

    fn seat_has_room(&self, seat: &Seat) -> bool {
        seat.up && seat.unwritten < self.room
    }

    /// The member whose turn it is.
    fn next(&self, now: Instant) -> Option<usize> {
        let with_room = (0..self.members.len()).filter(|&member| self.seat_has_room(&self.members[member]));
        let backlog = |member: usize| match self.balance {
            Balance::LeastBacklog => self.members[member].unwritten as f64 / self.weight(member, now),
            _ => 0.0,
        };
        let key = |member: usize| (backlog(member), self.members[member].turn);
        with_room.min_by(|&a, &b| {
            let ((a, a_turn), (b, b_turn)) = (key(a), key(b));
            a.total_cmp(&b).then(a_turn.total_cmp(&b_turn))
        })
    }

    /// The member of a writer connection, if it has room.
    fn home(&mut self, connection: ConnectionId, now: Instant) -> Option<usize> {
        let known = self.connections.get(&connection).copied();
        let wanted = self.wanted(known)?;
        let home = match known {
            // What its home has is written first, so that nothing overtakes it.
            Some(seen) if self.members[seen.home].up && seen.home != wanted => {
                let admitted = self.share(&self.members[wanted], now) > place(connection);
                if seen.unwritten == 0 && admitted { wanted } else { seen.home }
            }
            _ => wanted,
        };
        if !self.seat_has_room(&self.members[home]) {
            return None;
        }
        if self.connections.len() >= self.sweep_at {
            self.sweep(now);
        }
        let native = known.map_or(home, |seen| seen.native);
        let unwritten = known.map_or(0, |seen| if seen.home == home { seen.unwritten } else { 0 });
        let before = self.connections.insert(connection, Seen { home, native, unwritten, used_at: now });
        if let Some(before) = before {
            self.members[before.home].homed -= 1;
        }
        self.members[home].homed += 1;
        Some(home)
    }

    /// Forgets connections that have been idle for a minute; where too many are left, those that have been idle for less. One
    /// that comes back afterwards has a home as a new one has, and nothing of it is under way that could be overtaken.
    fn sweep(&mut self, now: Instant) {
        let mut idle = IDLE;
        loop {
            self.connections.retain(|_, seen| seen.unwritten > 0 || now - seen.used_at < idle);
            if self.connections.len() <= CONNECTIONS_MAX / 2 || idle.is_zero() {
                break;
            }
            idle = if idle > IDLE_MIN { idle / 2 } else { Duration::ZERO };
        }
        self.members.iter_mut().for_each(|seat| seat.homed = 0);
        for seen in self.connections.values() {
            self.members[seen.home].homed += 1;
        }
        let len = self.connections.len();
        self.sweep_at = (2 * len).clamp(SWEEP_MIN, CONNECTIONS_MAX).max(len + SWEEP_MIN);
    }

    /// The member that a writer connection should have; `None` while nobody is there.
    fn wanted(&self, known: Option<Seen>) -> Option<usize> {
        let mut up = (0..self.members.len()).filter(|&member| self.members[member].up);
        if self.balance == Balance::Failover {
            return up.next();
        }
        match known {
            Some(seen) if self.members[seen.native].up => Some(seen.native),
            Some(seen) if self.members[seen.home].up => Some(seen.home),
            _ => {
                let load = |member: usize| {
                    let seat = &self.members[member];
                    f64::from(seat.homed + 1) / seat.weight
                };
                up.min_by(|&a, &b| load(a).total_cmp(&load(b)))
            }
        }
    }

    fn weight(&self, member: usize, now: Instant) -> f64 {
        let seat = &self.members[member];
        seat.weight * self.share(seat, now)
    }

    /// The part of its full share that a member gets: less than 1 while it returns.
    fn share(&self, seat: &Seat, now: Instant) -> f64 {
        let Some(returned_at) = seat.returned_at else { return 1.0 };
        let elapsed = now.saturating_duration_since(returned_at);
        if elapsed >= self.slow_start {
            return 1.0;
        }
        (elapsed.as_secs_f64() / self.slow_start.as_secs_f64()).max(SHARE_MIN)
    }
}

/// Where a writer connection stands in the row of those that go back to a member: evenly between 0 and 1.
fn place(connection: ConnectionId) -> f64 {
    // Fibonacci hashing: neighbours end up far from each other.
    (u64::from(connection.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The share of a member that has just returned.
const SHARE_MIN: f64 = 0.05;
/// Bytes that a member which had no room for a while catches up with.
const CATCH_UP: f64 = (16_u64 << 20) as f64;
/// From so many writer connections on those that are idle are forgotten.
const SWEEP_MIN: usize = 1024;
const IDLE: Duration = Duration::from_secs(60);
/// Where too many connections are left, those are forgotten that have been idle for at least so long, and then all idle ones.
const IDLE_MIN: Duration = Duration::from_millis(100);
/// Writer connections that are remembered, except for those with batches under way: a few MiB.
const CONNECTIONS_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u64 = 1 << 20;
    const SLOW_START: Duration = Duration::from_secs(10);

    /// A group of which all are up.
    fn group(balance: Balance, weights: &[u32]) -> (Balancer, Instant) {
        let now = Instant::now();
        let mut balancer = Balancer::new(balance, weights, ROOM, SLOW_START);
        (0..weights.len()).for_each(|member| balancer.up(member, now, false));
        (balancer, now)
    }

    /// Bytes that each member gets of `batches`, each written at once.
    fn shares(balancer: &mut Balancer, now: Instant, batches: u64) -> Vec<u64> {
        let mut given = vec![0; balancer.members.len()];
        for batch in 0..batches {
            let bytes = 100 + batch * 7919 % 900;
            let member = balancer.give(ConnectionId::new(batch as u32 % 5), bytes, now).unwrap();
            given[member] += bytes;
            balancer.written(member, ConnectionId::new(batch as u32 % 5), bytes);
        }
        given
    }

    fn assert_shares(given: &[u64], parts: &[f64]) {
        let all: u64 = given.iter().sum();
        for (given, part) in given.iter().zip(parts) {
            let got = *given as f64 / all as f64;
            assert!((got - part).abs() < 0.02, "{given} of {all}, and not {part}");
        }
    }

    /// The relay begins before its collectors: the first of them is not to have everything for a while.
    #[test]
    fn a_member_that_comes_late_has_its_full_share() {
        let now = Instant::now();
        let mut balancer = Balancer::new(Balance::RoundRobin, &[1, 1], 1 << 20, Duration::from_secs(10));
        balancer.up(0, now, false);
        balancer.up(1, now, true);
        let members: Vec<_> =
            (0..10).filter_map(|_| balancer.give(ConnectionId::new(0), 1000, now)).collect();
        assert_eq!(members.iter().filter(|member| **member == 1).count(), 5, "{members:?}");
    }

    #[test]
    fn shares_follow_the_weights_whatever_the_sizes() {
        for balance in [Balance::RoundRobin, Balance::LeastBacklog] {
            let (mut balancer, now) = group(balance, &[1, 1, 1, 1]);
            assert_shares(&shares(&mut balancer, now, 10_000), &[0.25; 4]);
            let (mut balancer, now) = group(balance, &[3, 1]);
            assert_shares(&shares(&mut balancer, now, 10_000), &[0.75, 0.25]);
        }
    }

    #[test]
    fn a_member_without_room_is_left_out_and_catches_up() {
        let (mut balancer, now) = group(Balance::RoundRobin, &[1, 1]);
        balancer.unwritten(0, ConnectionId::new(9), ROOM);
        assert_eq!(shares(&mut balancer, now, 100)[0], 0);
        balancer.unwritten(1, ConnectionId::new(9), ROOM);
        assert!(!balancer.has_room());
        assert_eq!(balancer.give(ConnectionId::new(0), 100, now), None);
        balancer.written(0, ConnectionId::new(9), ROOM);
        balancer.written(1, ConnectionId::new(9), ROOM);
        assert!(balancer.all_written());
        let caught_up = shares(&mut balancer, now, 100);
        assert_eq!(caught_up[1], 0, "{caught_up:?}");
    }

    #[test]
    fn the_least_backlog_is_served_first() {
        let (mut balancer, now) = group(Balance::LeastBacklog, &[1, 1, 1]);
        balancer.unwritten(0, ConnectionId::new(9), 5000);
        balancer.unwritten(2, ConnectionId::new(9), 300);
        let order: Vec<_> = (0..4).map(|_| balancer.give(ConnectionId::new(0), 200, now).unwrap()).collect();
        assert_eq!(order, [1, 1, 2, 1]);
    }

    #[test]
    fn a_member_that_returns_gets_a_share_that_grows() {
        for balance in [Balance::RoundRobin, Balance::LeastBacklog] {
            let (mut balancer, now) = group(balance, &[1, 1]);
            balancer.down(0);
            assert_eq!(shares(&mut balancer, now, 10_000)[0], 0);
            balancer.up(0, now, true);
            assert_shares(&shares(&mut balancer, now, 10_000), &[0.05 / 1.05, 1.0 / 1.05]);
            let half = now + SLOW_START / 2;
            assert_shares(&shares(&mut balancer, half, 10_000), &[1.0 / 3.0, 2.0 / 3.0]);
            let end = now + SLOW_START;
            assert_shares(&shares(&mut balancer, end, 10_000), &[0.5, 0.5]);
        }
    }

    #[test]
    fn connections_stay_unless_their_member_dies_and_go_back_when_nothing_is_under_way() {
        let (mut balancer, now) = group(Balance::Sticky, &[1, 1, 1]);
        let homes = |balancer: &mut Balancer, now| -> Vec<usize> {
            (0..30)
                .map(|connection| {
                    let member = balancer.give(ConnectionId::new(connection), 100, now).unwrap();
                    balancer.written(member, ConnectionId::new(connection), 100);
                    member
                })
                .collect()
        };
        let first = homes(&mut balancer, now);
        assert_eq!((0..3).map(|m| first.iter().filter(|h| **h == m).count()).collect::<Vec<_>>(), [10; 3]);
        balancer.down(1);
        let second = homes(&mut balancer, now);
        for (first, second) in first.iter().zip(&second) {
            assert!(*second != 1 && (first == second || *first == 1));
        }
        assert_eq!(second.iter().filter(|home| **home == 0).count(), 15);
        balancer.up(1, now, true);
        assert!(homes(&mut balancer, now).iter().filter(|home| **home == 1).count() <= 1);
        let some = homes(&mut balancer, now + SLOW_START / 2).iter().filter(|home| **home == 1).count();
        assert!((2..=8).contains(&some), "{some}");
        // One whose frames are not written stays where they are.
        let late = now + SLOW_START;
        let away = (0..30)
            .find(|&connection| {
                balancer.connections[&ConnectionId::new(connection)].home != first[connection as usize]
            })
            .unwrap();
        let home = balancer.connections[&ConnectionId::new(away)].home;
        balancer.unwritten(home, ConnectionId::new(away), 100);
        assert_eq!(balancer.give(ConnectionId::new(away), 100, late), Some(home));
        balancer.written(home, ConnectionId::new(away), 100);
        balancer.written(home, ConnectionId::new(away), 100);
        assert_eq!(homes(&mut balancer, late), first);
    }

    #[test]
    fn weights_count_connections_under_sticky() {
        let (mut balancer, now) = group(Balance::Sticky, &[2, 1]);
        let homes: Vec<_> = (0..30)
            .map(|connection| balancer.give(ConnectionId::new(connection), 100, now).unwrap())
            .collect();
        assert_eq!(homes.iter().filter(|home| **home == 0).count(), 20);
    }

    #[test]
    fn failover_takes_the_first_that_is_there() {
        let (mut balancer, now) = group(Balance::Failover, &[1, 1, 1]);
        let home = |balancer: &mut Balancer, now| {
            let member = balancer.give(ConnectionId::new(7), 100, now)?;
            balancer.written(member, ConnectionId::new(7), 100);
            Some(member)
        };
        assert_eq!(home(&mut balancer, now), Some(0));
        balancer.down(0);
        assert_eq!(home(&mut balancer, now), Some(1));
        balancer.down(1);
        assert_eq!(home(&mut balancer, now), Some(2));
        balancer.down(2);
        assert_eq!(home(&mut balancer, now), None);
        balancer.up(1, now, true);
        assert_eq!(home(&mut balancer, now), Some(1));
        balancer.up(0, now, true);
        assert_eq!(home(&mut balancer, now + SLOW_START), Some(0));
    }

    #[test]
    fn a_connection_waits_for_its_member_and_idle_ones_are_forgotten() {
        let (mut balancer, now) = group(Balance::Sticky, &[1, 1]);
        let home = balancer.give(ConnectionId::new(0), ROOM, now).unwrap();
        assert_eq!(balancer.give(ConnectionId::new(0), 100, now), None);
        balancer.written(home, ConnectionId::new(0), ROOM);
        let later = now + 2 * IDLE;
        for connection in 1..2 * SWEEP_MIN as u32 {
            let at = if connection < SWEEP_MIN as u32 { now } else { later };
            let member = balancer.give(ConnectionId::new(connection), 1, at).unwrap();
            balancer.written(member, ConnectionId::new(connection), 1);
        }
        assert_eq!(balancer.connections.len(), SWEEP_MIN);
    }

    #[test]
    fn connections_that_came_and_went_leave_no_trace() {
        let (mut balancer, now) = group(Balance::Sticky, &[2, 1]);
        balancer.give(ConnectionId::new(0), 1, now).unwrap();
        let given = 5 * CONNECTIONS_MAX as u32;
        let mut homes = [0; 2];
        for connection in 1..given {
            let at = now + connection * Duration::from_micros(20);
            let member = balancer.give(ConnectionId::new(connection), 1, at).unwrap();
            balancer.written(member, ConnectionId::new(connection), 1);
            homes[member] += 1;
            assert!(balancer.connections.len() <= CONNECTIONS_MAX);
        }
        assert!(balancer.connections.contains_key(&ConnectionId::new(0)), "its batch is under way");
        assert_eq!(balancer.connections[&ConnectionId::new(given - 1)].unwritten, 0);
        assert!((given / 3).abs_diff(homes[1]) < given / 100, "{homes:?}");
        for (member, seat) in balancer.members.iter().enumerate() {
            let homed = balancer.connections.values().filter(|seen| seen.home == member).count();
            assert_eq!(seat.homed as usize, homed);
        }
    }
}
