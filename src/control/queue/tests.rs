use std::collections::HashSet;
use std::num::{NonZeroU16, NonZeroU32};

use proptest::prelude::*;

use super::*;
use crate::control::ask::Class;

const MILLI: Duration = Duration::from_millis(1);
const LIMIT: usize = 10;
/// Ten credits that are out for 20 ms each: 500 a second.
const BUSY: Supply = Supply { usual: LIMIT, free: 0 };
const FREE: Supply = Supply { usual: LIMIT, free: 1 };

/// A queue, a clock and a count.
struct Bench {
    queue: Queue<u64>,
    now: Instant,
    count: u64,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        Self { queue: Queue::new(rules), now: Instant::now(), count: 0 }
    }

    /// It is known how long a credit is out.
    fn warm(rules: Rules) -> Self {
        let mut bench = Self::new(rules);
        for _ in 0..50 {
            bench.queue.on_return(None, 20 * MILLI, bench.now);
        }
        bench
    }

    fn ask(&self) -> Ask {
        Ask::new(Class::Unary, self.now)
    }

    /// Offers what is asked; its number is the count. None when it was sent away.
    fn offer(&mut self, ask: Ask) -> Result<Ticket, Dismissal> {
        self.queue.on_arrival(self.now);
        let ticket = Ticket(self.count);
        self.count += 1;
        let waiter = Waiter { ticket, ask, wake: ticket.0 };
        self.queue.offer(waiter, BUSY, Beside::default()).map_err(|(_, why)| why)
    }

    fn wait(&mut self) -> Result<Ticket, Dismissal> {
        self.offer(self.ask())
    }

    fn of(&mut self, tenant: u64) -> Result<Ticket, Dismissal> {
        self.offer(Ask { tenant, ..self.ask() })
    }

    fn as_(&mut self, priority: Priority) -> Result<Ticket, Dismissal> {
        self.offer(Ask { priority, ..self.ask() })
    }

    fn pop(&mut self) -> Option<u64> {
        let next = self.queue.next(FREE, self.now)?;
        Some(self.queue.pop(next)?.0.wake)
    }

    fn all(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    fn dismissed(&mut self) -> Vec<(u64, Dismissal)> {
        std::iter::from_fn(|| self.queue.take_dismissed()).collect()
    }

    /// For more than a second twice as many come as are served.
    fn overload(&mut self) {
        for n in 0..1200 {
            self.now += MILLI;
            let _ = self.wait();
            if n % 2 == 0 {
                self.pop();
            }
            self.queue.expire(BUSY, self.now);
        }
    }
}

fn rules() -> Rules {
    Rules { max: 4, ..Rules::default() }
}

#[test]
fn each_order_has_its_next() {
    let deadlines = [None, Some(300), Some(100), Some(5000)];
    for (order, expected) in [
        (Order::Fifo, [0, 1, 2, 3]),
        (Order::Lifo, [3, 2, 1, 0]),
        // Without a deadline it is the wait's, as is one that is later.
        (Order::Deadline, [2, 1, 0, 3]),
    ] {
        let mut bench = Bench::new(Rules { order, ..rules() });
        for deadline in deadlines {
            let deadline = deadline.map(|after| bench.now + after * MILLI);
            bench.offer(Ask { deadline, ..bench.ask() }).unwrap();
        }
        assert_eq!(bench.all(), expected, "{order:?}");
    }
}

#[test]
fn priorities_share_thirteen_turns() {
    let mut bench = Bench::new(Rules { order: Order::Priority, max: 1000, ..rules() });
    let mut of = Vec::new();
    for _ in 0..100 {
        for priority in [Priority::Background, Priority::Default, Priority::Critical] {
            bench.as_(priority).unwrap();
            of.push(priority);
        }
    }
    let served: Vec<_> = (0..104).map(|_| of[usize::try_from(bench.pop().unwrap()).unwrap()]).collect();
    for turns in served.chunks(13) {
        let count = |priority| turns.iter().filter(|served| **served == priority).count();
        let counts = [Priority::Critical, Priority::Default, Priority::Background].map(count);
        assert_eq!(counts, [8, 4, 1]);
    }
    // Turns that nobody uses pass on, and are not saved up.
    let mut bench = Bench::new(Rules { order: Order::Priority, max: 1000, ..rules() });
    for _ in 0..50 {
        bench.as_(Priority::Critical).unwrap();
        bench.pop().unwrap();
    }
    let first = bench.as_(Priority::Critical).unwrap().0;
    for _ in 0..4 {
        bench.as_(Priority::Background).unwrap();
    }
    assert!(bench.all()[..2].contains(&first));
}

#[test]
fn the_protected_go_first_and_are_not_sent_away() {
    for order in [Order::Fifo, Order::Lifo, Order::Priority, Order::Deadline, Order::Fair] {
        for drop in [DropPolicy::RejectNewest, DropPolicy::RejectOldest, DropPolicy::RejectLowest] {
            let mut bench = Bench::new(Rules { order, drop, ..rules() });
            for _ in 0..4 {
                bench.wait().unwrap();
            }
            for _ in 0..4 {
                bench.as_(Priority::Protected).unwrap();
            }
            assert_eq!(bench.dismissed().len(), 4, "{order:?} {drop:?}");
            assert_eq!(bench.as_(Priority::Protected), Err(Dismissal::Full), "the bound stands");
            assert_eq!(bench.wait(), Err(Dismissal::Full));
            bench.now += Duration::from_secs(10);
            bench.queue.expire(BUSY, bench.now);
            assert_eq!(bench.queue.len(), 4);
        }
    }
    let mut bench = Bench::new(rules());
    bench.wait().unwrap();
    bench.as_(Priority::Protected).unwrap();
    assert_eq!(bench.all(), [1, 0]);
}

#[test]
fn each_policy_has_its_victim() {
    let low = Priority::Background;
    let cases = [
        (DropPolicy::RejectNewest, Err(Dismissal::Full), vec![], [0, 1, 2, 3]),
        (DropPolicy::RejectOldest, Ok(Ticket(4)), vec![(0, Dismissal::Dropped)], [1, 2, 3, 4]),
        (DropPolicy::RejectLowest, Ok(Ticket(4)), vec![(2, Dismissal::Dropped)], [0, 1, 3, 4]),
        (DropPolicy::ReplaceSameKey, Ok(Ticket(4)), vec![(1, Dismissal::Replaced)], [0, 2, 3, 4]),
    ];
    for (drop, answer, dismissed, left) in cases {
        let mut bench = Bench::new(Rules { drop, ..rules() });
        let ask = bench.ask();
        for ask in [Ask { tenant: 1, ..ask }, Ask { tenant: 2, ..ask }, Ask { priority: low, ..ask }, ask] {
            bench.offer(ask).unwrap();
        }
        assert_eq!((bench.of(2), bench.dismissed()), (answer, dismissed), "{drop:?}");
        assert_eq!(bench.all(), left, "{drop:?}");
    }
    let mut bench = Bench::new(Rules { drop: DropPolicy::ReplaceSameKey, ..rules() });
    (0..4).for_each(|key| assert!(bench.of(key).is_ok()));
    assert_eq!(bench.of(9), Err(Dismissal::Full), "nobody has the same key");
    let mut bench = Bench::new(Rules { drop: DropPolicy::RejectLowest, ..rules() });
    (0..4).for_each(|_| assert!(bench.as_(Priority::Critical).is_ok()));
    assert_eq!(bench.wait(), Err(Dismissal::Full), "it is itself the lowest");
}

#[test]
fn bytes_are_a_bound_too() {
    let mut bench = Bench::new(Rules { max_bytes: 100, drop: DropPolicy::RejectOldest, ..rules() });
    let ask = |bytes| Ask { bytes, ..Ask::new(Class::Unary, Instant::now()) };
    assert_eq!(bench.offer(ask(101)), Err(Dismissal::Full));
    assert!(bench.offer(ask(60)).is_ok() && bench.offer(ask(40)).is_ok());
    assert!(bench.offer(ask(50)).is_ok());
    assert_eq!((bench.dismissed(), bench.queue.bytes()), (vec![(1, Dismissal::Dropped)], 90));
    assert!(bench.pop().is_some());
    assert_eq!(bench.queue.bytes(), 50);
}

#[test]
fn a_crowd_that_is_served_does_not_stand_and_an_overload_does() {
    let mut bench = Bench::warm(Rules::default());
    for _ in 0..200 {
        bench.wait().unwrap();
    }
    bench.now += 300 * MILLI;
    assert!(!bench.queue.is_standing(BUSY, bench.now), "fewer come than turn over");
    assert_eq!(bench.pop(), Some(0), "who waited longest");
    let mut bench = Bench::warm(Rules::default());
    bench.overload();
    assert!(bench.queue.is_standing(BUSY, bench.now));
    // Twice 20 ms at 500 a second.
    assert_eq!(bench.queue.len(), 20);
    assert!(bench.dismissed().iter().all(|(_, why)| *why == Dismissal::Shed));
    let newest = bench.wait().unwrap().0;
    assert_eq!(bench.pop(), Some(newest), "the newest has the most time left");
    bench.now += 81 * MILLI;
    bench.wait().unwrap();
    bench.queue.expire(BUSY, bench.now);
    assert_eq!(bench.queue.len(), 1, "the others have waited twice as long as is allowed");
}

#[test]
fn without_the_controlled_delay_only_the_bounds_count() {
    let mut bench = Bench::warm(Rules { sheds: false, ..Rules::default() });
    bench.overload();
    assert!(!bench.queue.is_standing(BUSY, bench.now));
    assert_eq!((bench.queue.len(), bench.dismissed()), (600, vec![]));
    assert_eq!(bench.pop(), Some(600), "who waited longest");
}

#[test]
fn who_would_wait_for_nothing_is_told_at_once() {
    let mut bench = Bench::warm(Rules { timeout: 100 * MILLI, ..Rules::default() });
    // 50 turn over within the time, and by good luck two deviations more.
    let placed = (0..100).take_while(|_| bench.wait().is_ok()).count();
    assert_eq!(placed, 65);
    let mut unknown = Bench::new(Rules { timeout: 100 * MILLI, max: 100, ..Rules::default() });
    assert!((0..100).all(|_| unknown.wait().is_ok()), "nothing is known of the service");
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_on_arrival_or_when_it_has_become_so() {
    let mut bench = Bench::warm(Rules::default());
    let within = |bench: &Bench, millis| Ask { deadline: Some(bench.now + millis * MILLI), ..bench.ask() };
    for _ in 0..50 {
        bench.wait().unwrap();
    }
    // 51 places are 102 ms, and a quick answer takes nearly 20.
    assert_eq!(bench.offer(within(&bench, 110)), Err(Dismissal::TooLate));
    let ticket = bench.offer(within(&bench, 130)).unwrap();
    assert_eq!(bench.offer(within(&bench, 0)), Err(Dismissal::TooLate));
    bench.now += 115 * MILLI;
    while bench.queue.len() > 1 {
        bench.pop();
    }
    let next = bench.queue.next(FREE, bench.now).unwrap();
    assert!(bench.queue.is_late(bench.queue.ask_of(&next).unwrap(), bench.now));
    bench.queue.dismiss_late(&next);
    assert_eq!(bench.dismissed(), [(ticket.0, Dismissal::TooLate)]);
}

#[test]
fn one_key_cannot_squeeze_another_and_goes_first_when_there_is_no_place() {
    let rules = Rules { order: Order::Fair, tenancy: Tenancy::Keys, max: 20, ..Rules::default() };
    let mut bench = Bench::new(rules);
    for _ in 0..20 {
        bench.of(1).unwrap();
    }
    for _ in 0..5 {
        bench.of(2).unwrap();
    }
    assert_eq!(bench.dismissed().len(), 5, "the newest of the key that has most");
    assert_eq!(bench.of(1), Err(Dismissal::Full));
    let served = bench.all();
    assert_eq!(served[..10].iter().filter(|number| **number >= 20).count(), 5, "{served:?}");
}

#[test]
fn what_was_used_counts_and_not_how_often() {
    let rules = Rules { order: Order::Fair, tenancy: Tenancy::Keys, max: 4000, ..Rules::default() };
    let mut bench = Bench::new(rules);
    for n in 0..2000 {
        bench.of(n % 2).unwrap();
    }
    // Requests of the one key take five times as long.
    let (mut used, mut served) = ([0_u32; 2], 0);
    while served < 600 {
        let next = bench.queue.next(FREE, bench.now).unwrap();
        let (waiter, charge) = bench.queue.pop(next).unwrap();
        let tenant = usize::try_from(waiter.ask.tenant).unwrap();
        let took = [50, 10][tenant];
        used[tenant] += took;
        served += 1;
        bench.queue.on_return(charge, took * MILLI, bench.now);
    }
    let share = f64::from(used[0]) / f64::from(used[0] + used[1]);
    assert!((0.48..0.52).contains(&share), "{used:?}");
}

#[test]
fn keys_that_have_used_the_same_are_served_as_they_came() {
    let mut bench = Bench::new(Rules { order: Order::Fair, tenancy: Tenancy::Keys, max: 100, ..Rules::default() });
    let mut served = Vec::new();
    for n in 0..500_u64 {
        // Each key comes once.
        bench.of(u64::MAX - n).unwrap();
        if n >= 50
            && let Some(next) = bench.queue.next(FREE, bench.now)
            && let Some((waiter, charge)) = bench.queue.pop(next)
        {
            bench.queue.on_return(charge, 20 * MILLI, bench.now);
            served.push(waiter.wake);
        }
    }
    assert!(served.iter().copied().eq(0..450), "{served:?}");
}

#[test]
fn a_weight_is_a_multiple_of_a_share() {
    let rules = Rules { order: Order::Fair, tenancy: Tenancy::Keys, max: 4000, ..Rules::default() };
    let mut bench = Bench::new(rules);
    let weights = [1, 4].map(|weight| NonZeroU32::new(weight).unwrap());
    for n in 0..2000 {
        let tenant = n % 2;
        let ask = Ask { tenant, weight: weights[usize::try_from(tenant).unwrap()], ..bench.ask() };
        bench.offer(ask).unwrap();
    }
    let mut served = [0; 2];
    for _ in 0..500 {
        let next = bench.queue.next(FREE, bench.now).unwrap();
        let (waiter, charge) = bench.queue.pop(next).unwrap();
        served[usize::try_from(waiter.ask.tenant).unwrap()] += 1;
        bench.queue.on_return(charge, 20 * MILLI, bench.now);
    }
    assert!((98..=102).contains(&served[0]), "{served:?}");
}

#[test]
fn a_partition_leaves_credits_and_places_to_others() {
    let hands = Hands::new(NonZeroU16::new(64).unwrap(), 4);
    let rules = Rules { tenancy: Tenancy::Partitions(hands), max: 50, ..Rules::default() };
    let mut bench = Bench::new(rules);
    // One key takes all the credits that it can get.
    let mut out = 0;
    let ask = Ask { tenant: 1, ..bench.ask() };
    while bench.queue.may_pass(&ask, || Supply { usual: 20, free: 20 - out }) {
        assert!(bench.queue.charge(&ask).is_some());
        out += 1;
    }
    assert_eq!(out, 16, "four for each of its queues, and four for others");
    let other = Ask { tenant: 2, ..ask };
    let supply = Supply { usual: 20, free: 4 };
    assert!(bench.queue.may_pass(&other, || supply));
    // And all the places.
    let placed = (0..100).filter(|_| bench.of(1).is_ok()).count();
    assert_eq!((placed, bench.queue.len()), (40, 40), "ten for each of its queues, and ten for others");
    assert!(bench.queue.may_pass(&other, || supply), "who waits may have no credit");
    assert!(bench.of(2).is_ok());
    let next = bench.queue.next(supply, bench.now).unwrap();
    assert_eq!(bench.queue.ask_of(&next).unwrap().tenant, 2);
}

#[test]
fn a_partition_is_charged_across_a_reload_and_when_all_are_sent_home() {
    let hands = Hands::new(NonZeroU16::new(64).unwrap(), 4);
    let rules = Rules { tenancy: Tenancy::Partitions(hands), ..Rules::default() };
    for other in [Rules { max: 9, ..rules }, Rules { order: Order::Fair, ..rules }, Rules::default()] {
        let mut bench = Bench::new(rules);
        let ask = Ask { tenant: 1, ..bench.ask() };
        let supply = |out: usize| Supply { usual: 20, free: 20 - out };
        let mut out = Vec::new();
        while bench.queue.may_pass(&ask, || supply(out.len())) {
            out.push(bench.queue.charge(&ask));
        }
        bench.of(1).unwrap();
        bench.queue.set_rules(other);
        bench.queue.set_rules(rules);
        bench.queue.take_all();
        let keeps = other.tenancy == rules.tenancy && other.order == rules.order;
        assert_eq!(bench.queue.may_pass(&ask, || supply(out.len())), !keeps, "{other:?}");
        // In a flood each credit that comes back is taken again.
        for _ in 0..100 {
            bench.queue.on_return(out.remove(0), MILLI, bench.now);
            while bench.queue.may_pass(&ask, || supply(out.len())) {
                out.push(bench.queue.charge(&ask));
            }
        }
        assert_eq!(out.len(), 16, "{other:?}");
        for charge in out {
            bench.queue.on_return(charge, MILLI, bench.now);
        }
        assert_eq!(bench.queue.levels.iter().map(Level::tenants).sum::<usize>(), 0);
    }
}

#[test]
fn a_partition_does_not_send_the_protected_away() {
    let tenancy = Tenancy::Partitions(Hands::new(NonZeroU16::new(64).unwrap(), 1));
    let mut bench = Bench::new(Rules { tenancy, ..rules() });
    for tenant in 1..=4 {
        bench.of(tenant).unwrap();
    }
    for _ in 0..4 {
        bench.as_(Priority::Protected).unwrap();
    }
    assert_eq!(bench.dismissed().len(), 4);
    assert_eq!(bench.as_(Priority::Protected), Err(Dismissal::Full), "there is none but protected ones");
}

#[test]
fn many_keys_take_the_memory_of_those_who_wait() {
    let tenancies = [Tenancy::Keys, Tenancy::Strangers(Hands::for_strangers())];
    for tenancy in tenancies {
        let mut bench = Bench::new(Rules { order: Order::Fair, tenancy, max: 100, ..Rules::default() });
        for key in 0..30_000_u64 {
            let _ = bench.of(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            bench.dismissed();
            if key % 3 == 0
                && let Some(next) = bench.queue.next(FREE, bench.now)
                && let Some((_, charge)) = bench.queue.pop(next)
            {
                bench.queue.on_return(charge, MILLI, bench.now);
            }
            let tenants: usize = bench.queue.levels.iter().map(Level::tenants).sum();
            assert!(tenants <= 100 && bench.queue.len() <= 100);
        }
    }
}

#[test]
fn other_rules_find_the_same_who_wait() {
    let mut bench = Bench::new(rules());
    for _ in 0..3 {
        bench.wait().unwrap();
    }
    bench.queue.set_rules(Rules { order: Order::Lifo, max: 1, ..rules() });
    assert_eq!(bench.wait(), Err(Dismissal::Full));
    assert_eq!(bench.all(), [2, 1, 0]);
}

#[derive(Clone, Debug)]
enum Step {
    Offer { tenant: u64, priority: usize, deadline: Option<u32>, bytes: usize },
    Pop,
    Return(usize),
    Leave(usize),
    Pass(u32),
    Rules(Rules),
}

fn some_rules() -> impl Strategy<Value = Rules> {
    let orders = [Order::Fifo, Order::Lifo, Order::Priority, Order::Deadline, Order::Fair];
    let policies =
        [DropPolicy::RejectNewest, DropPolicy::RejectOldest, DropPolicy::RejectLowest, DropPolicy::ReplaceSameKey];
    let hands = Hands::new(NonZeroU16::new(5).unwrap(), 2);
    let tenancies = [Tenancy::One, Tenancy::Keys, Tenancy::Strangers(hands), Tenancy::Partitions(hands)];
    (0..5_usize, 0..4_usize, 0..4_usize, any::<bool>()).prop_map(move |(order, drop, tenancy, sheds)| Rules {
        max: 8,
        max_bytes: 100,
        timeout: 300 * MILLI,
        order: orders[order],
        drop: policies[drop],
        tenancy: tenancies[tenancy],
        sheds,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let deadline = prop_oneof![Just(None), (0_u32..500).prop_map(Some)];
    prop_oneof![
        8 => (0..6_u64, 0..4_usize, deadline, 0..40_usize)
            .prop_map(|(tenant, priority, deadline, bytes)| Step::Offer { tenant, priority, deadline, bytes }),
        4 => Just(Step::Pop),
        4 => any::<usize>().prop_map(Step::Return),
        2 => any::<usize>().prop_map(Step::Leave),
        4 => (0_u32..100).prop_map(Step::Pass),
        1 => some_rules().prop_map(Step::Rules),
    ]
}

proptest! {
    /// Whatever happens: no bound is exceeded, everybody is served, sent away or leaves exactly once, and when all have
    /// gone nothing is remembered.
    #[test]
    fn nobody_is_lost_and_no_bound_exceeded(
        first in some_rules(),
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut bench = Bench::new(first);
        let (mut waiting, mut out): (HashSet<u64>, Vec<Option<Charge>>) = (HashSet::new(), Vec::new());
        for step in steps {
            let supply = Supply { usual: 4, free: 4_usize.saturating_sub(out.len()) };
            match step {
                Step::Offer { tenant, priority, deadline, bytes } => {
                    let priority = Priority::ALL[priority];
                    let deadline = deadline.map(|after| bench.now + after * MILLI);
                    let ask = Ask { priority, deadline, tenant, bytes, ..bench.ask() };
                    if let Ok(ticket) = bench.offer(ask) {
                        prop_assert!(waiting.insert(ticket.0));
                    }
                }
                Step::Pop if supply.free > 0 => {
                    if let Some(next) = bench.queue.next(supply, bench.now) {
                        let (waiter, charge) = bench.queue.pop(next).unwrap();
                        prop_assert!(waiting.remove(&waiter.wake));
                        out.push(charge);
                    } else {
                        let partitioned = matches!(bench.queue.rules.tenancy, Tenancy::Partitions(_));
                        prop_assert!(waiting.is_empty() || partitioned);
                    }
                }
                Step::Return(n) if !out.is_empty() => {
                    let charge = out.swap_remove(n % out.len());
                    bench.queue.on_return(charge, 20 * MILLI, bench.now);
                }
                Step::Leave(n) if !waiting.is_empty() => {
                    let mut all: Vec<_> = waiting.iter().copied().collect();
                    all.sort_unstable();
                    let ticket = Ticket(all[n % all.len()]);
                    prop_assert!(bench.queue.remove(ticket).is_some());
                    prop_assert!(bench.queue.remove(ticket).is_none());
                    waiting.remove(&ticket.0);
                }
                Step::Pass(millis) => bench.now += millis * MILLI,
                Step::Rules(rules) => bench.queue.set_rules(rules),
                _ => {}
            }
            bench.queue.expire(supply, bench.now);
            for (number, _) in bench.dismissed() {
                prop_assert!(waiting.remove(&number));
            }
            prop_assert_eq!(bench.queue.len(), waiting.len());
            prop_assert!(bench.queue.len() <= 8 && bench.queue.bytes() <= 100);
        }
        for charge in out.drain(..) {
            bench.queue.on_return(charge, MILLI, bench.now);
        }
        for waiter in bench.queue.take_all() {
            prop_assert!(waiting.remove(&waiter.wake));
        }
        prop_assert!(waiting.is_empty() && bench.queue.is_empty());
        prop_assert_eq!(bench.queue.levels.iter().map(Level::tenants).sum::<usize>(), 0);
        prop_assert_eq!(bench.queue.bytes(), 0);
    }

    /// While all keys always have somebody waiting, what any two of them have used differs by no more than the dearest
    /// request of each.
    #[test]
    fn shares_differ_by_no_more_than_a_request(times in proptest::collection::vec(1_u32..50, 4)) {
        let rules = Rules { order: Order::Fair, tenancy: Tenancy::Keys, max: 10_000, ..Rules::default() };
        let mut bench = Bench::new(rules);
        for n in 0..1600 {
            bench.of(n % 4).unwrap();
        }
        let mut used = [0_u32; 4];
        while used.iter().sum::<u32>() < 100 * times.iter().min().unwrap() {
            let next = bench.queue.next(FREE, bench.now).unwrap();
            let (waiter, charge) = bench.queue.pop(next).unwrap();
            let tenant = usize::try_from(waiter.ask.tenant).unwrap();
            used[tenant] += times[tenant];
            bench.queue.on_return(charge, times[tenant] * MILLI, bench.now);
            let (most, least) = (used.iter().max().unwrap(), used.iter().min().unwrap());
            prop_assert!(most - least <= 2 * times.iter().max().unwrap(), "{:?} of {:?}", used, times);
        }
    }
}
