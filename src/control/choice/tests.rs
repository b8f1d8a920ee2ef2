use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

fn choice(settings: Settings, members: &[Member]) -> Choice {
    let mut choice = Choice::default();
    choice.set(settings);
    for (account, member) in members.iter().enumerate() {
        choice.join(account, Member { identity: 77 * (account as u64 + 1), ..*member }, None);
    }
    choice
}

fn policy(policy: Policy) -> Settings {
    Settings { policy, ..Settings::default() }
}

fn weight(weight: u32) -> Member {
    Member { weight, ..Member::default() }
}

fn ask(at: Instant) -> Ask {
    Ask::new(Class::Unary, at)
}

fn keyed(key: u64, at: Instant) -> Ask {
    Ask { affinity: Some(key), ..ask(at) }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn free(_: usize) -> Load {
    Load { used: 0, limit: 100 }
}

fn answers(choice: &mut Choice, account: usize, time: u64, now: Instant) {
    choice.learn(account, Sample::Answered(millis(time)), now);
}

fn failure(after: Duration) -> Sample {
    Sample::Failed { after, retry_after: None }
}

/// How many of so many requests each endpoint gets.
fn shares(
    choice: &mut Choice,
    count: usize,
    requests: usize,
    mut load: impl FnMut(usize) -> Load,
    now: Instant,
) -> Vec<usize> {
    let load = RefCell::new(&mut load);
    let mut shares = vec![0; count];
    for _ in 0..requests {
        if let Some(at) = choice.choose(&ask(now), |at| (load.borrow_mut())(at)) {
            shares[at] += 1;
        }
    }
    shares
}

#[test]
fn endpoints_of_which_nothing_is_known_take_turns_and_full_ones_are_passed_over() {
    let now = Instant::now();
    let mut choice = choice(Settings::default(), &[weight(1); 3]);
    let order: Vec<_> = (0..4).filter_map(|_| choice.choose(&ask(now), free)).collect();
    assert_eq!(order, [0, 1, 2, 0]);
    let full = |full: usize| move |at: usize| Load { used: usize::from(at == full), limit: 1 };
    assert_eq!(choice.choose(&ask(now), full(1)), Some(2));
    assert_eq!(choice.choose(&ask(now), |_| Load::default()), None);
    choice.leave(0);
    assert_eq!(choice.choose(&ask(now), full(1)), Some(2));
    assert_eq!(choice.view(2).map(|view| view.requests), Some(3));
}

#[test]
fn the_next_request_goes_where_it_costs_least() {
    let now = Instant::now();
    let mut choice = choice(Settings::default(), &[weight(1), weight(1), weight(3)]);
    for (account, time) in [(0, 20), (1, 60), (2, 60)] {
        answers(&mut choice, account, time, now);
    }
    let used = |used: [usize; 3]| move |at: usize| Load { used: used[at], limit: 9 };
    assert_eq!(choice.choose(&ask(now), used([0, 0, 1])), Some(0));
    assert_eq!(choice.choose(&ask(now), used([4, 0, 5])), Some(1));
    assert_eq!(choice.choose(&ask(now), used([4, 2, 1])), Some(2), "a third of the cost for three times the weight");
    assert_eq!(choice.choose(&ask(now), used([9, 8, 9])), Some(1));
    assert_eq!(choice.choose(&Ask { avoid: Some(0), ..ask(now) }, used([0, 8, 9])), Some(1));
    assert_eq!(choice.choose(&Ask { avoid: Some(0), ..ask(now) }, used([0, 9, 9])), Some(0), "there is no other");
}

#[test]
fn what_differs_by_chance_takes_turns() {
    let now = Instant::now();
    let mut choice = choice(Settings::default(), &[weight(1); 3]);
    for (account, time) in [(0, 20), (1, 23), (2, 40)] {
        answers(&mut choice, account, time, now);
    }
    assert_eq!(shares(&mut choice, 3, 100, free, now), [50, 50, 0]);
    let busy = |_| Load { used: 9, limit: 10 };
    assert_eq!(shares(&mut choice, 3, 100, busy, now), [100, 0, 0], "of ten requests each, that is more than one");
}

#[test]
fn an_estimate_is_a_mean_over_a_second_and_idleness_does_not_change_it() {
    let now = Instant::now();
    let mut choice = choice(Settings::default(), &[weight(1); 2]);
    answers(&mut choice, 0, 100, now);
    answers(&mut choice, 1, 10, now);
    let latency = |choice: &Choice| choice.view(0).and_then(|view| view.latency).expect("it is known").as_millis();
    assert_eq!(choice.choose(&ask(now + millis(600_000)), free), Some(1), "after ten quiet minutes too");
    answers(&mut choice, 0, 0, now + millis(500));
    assert_eq!(latency(&choice), 37, "100 ms e^-0.5 / (1 + e^-0.5)");
    answers(&mut choice, 0, 300, now + millis(10_000));
    assert_eq!(latency(&choice), 299);
    choice.learn(0, Sample::Left(millis(200)), now + millis(11_000));
    assert_eq!(latency(&choice), 299, "who leaves before the usual time tells nothing");
    choice.learn(0, Sample::Left(millis(2000)), now + millis(20_000));
    assert_eq!(latency(&choice), 999, "the rest may be the client's");
}

#[test]
fn a_failure_counts_a_second_or_what_the_endpoint_asks_for() {
    let now = Instant::now();
    let latency = |sample| {
        let mut choice = choice(Settings::default(), &[weight(1); 2]);
        choice.learn(0, sample, now);
        choice.view(0).and_then(|view| view.latency).expect("it is known").as_secs()
    };
    let told = |secs| Sample::Failed { after: millis(1), retry_after: Some(Duration::from_secs(secs)) };
    assert_eq!(latency(failure(millis(1))), 1);
    assert_eq!(latency(failure(millis(4000))), 4);
    assert_eq!((latency(told(0)), latency(told(7)), latency(told(3600))), (1, 7, 30));
}

#[test]
fn one_of_whom_nothing_is_known_is_as_good_as_the_middle_of_the_pool() {
    let now = Instant::now();
    let mut choice = choice(Settings::default(), &[weight(1); 4]);
    for (account, time) in [(0, 20), (1, 100), (2, 500)] {
        answers(&mut choice, account, time, now);
    }
    let used = |used: [usize; 4]| move |at: usize| Load { used: used[at], limit: 9 };
    assert_eq!(choice.choose(&ask(now), used([8, 1, 0, 0])), Some(3));
    assert_eq!(choice.choose(&ask(now), used([3, 1, 0, 0])), Some(0));
}

#[test]
fn a_bad_endpoint_is_tried_now_and_then() {
    let mut now = Instant::now();
    let mut choice = choice(Settings::default(), &[weight(1); 3]);
    for account in 0..3 {
        answers(&mut choice, account, 20, now);
    }
    choice.learn(1, failure(millis(1)), now + millis(100_000));
    now += millis(100_001);
    let tried = shares(&mut choice, 3, 600, free, now)[1];
    assert_eq!(tried, 0, "it has just failed");
    now += STALE;
    let tried = shares(&mut choice, 3, 10 * EVERY as usize, free, now)[1];
    assert_eq!(tried, 1, "and then it is known again how it is");
    now += STALE;
    let busy = |at: usize| Load { used: usize::from(at == 1), limit: 9 };
    assert_eq!(shares(&mut choice, 3, 600, busy, now)[1], 0, "one at a time");
    now += TRY_AFTER;
    assert_eq!(choice.choose(&ask(now), free), Some(1), "with few requests it is tried by time");
    answers(&mut choice, 1, 20, now + millis(20));
    assert!(shares(&mut choice, 3, 300, free, now + millis(30))[1] >= 99, "it has recovered");
}

#[test]
fn who_comes_back_is_spared_for_a_while() {
    let now = Instant::now();
    let used = RefCell::new([0_usize; 2]);
    let mut choice = choice(Settings::default(), &[weight(1); 2]);
    answers(&mut choice, 0, 20, now);
    choice.learn(1, failure(millis(1)), now);
    choice.come_back(1, now);
    let mut settles = |at: Instant| {
        *used.borrow_mut() = [0; 2];
        for _ in 0..110 {
            let found = choice.choose(&ask(at), |at| Load { used: used.borrow()[at], limit: 1000 }).expect("room");
            used.borrow_mut()[found] += 1;
        }
        used.borrow()[1]
    };
    assert!((9..=11).contains(&settles(now)), "a tenth of the other's share");
    let half = settles(now + millis(5000));
    assert!((37..=41).contains(&half), "{half}: 0.55 of the other's");
    assert!((54..=56).contains(&settles(now + millis(10_000))));
    let mut choice = self::choice(Settings { slow_start: None, ..Settings::default() }, &[weight(1); 2]);
    choice.come_back(1, now);
    assert_eq!(shares(&mut choice, 2, 100, free, now), [50, 50]);
}

#[test]
fn those_that_are_near_come_first_while_they_are_well() {
    let now = Instant::now();
    let (near, far) = (weight(1), Member { is_near: false, ..weight(1) });
    let fresh = |settings| choice(settings, &[far, near, far, near]);
    let some_full = |full: &'static [usize]| move |at: usize| Load { used: usize::from(full.contains(&at)), limit: 1 };
    for way in [Policy::LeastLoaded, Policy::RoundRobin, Policy::Weighted, Policy::Hash] {
        let mut choice = fresh(policy(way));
        let mut of = |load: &dyn Fn(usize) -> Load| {
            let all = (0..40).filter_map(|key| choice.choose(&keyed(key, now), load));
            let mut all: Vec<_> = all.collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        assert_eq!(of(&free), [1, 3], "{way:?}");
        assert_eq!(of(&some_full(&[1])), [3], "{way:?}");
        assert_eq!(of(&some_full(&[1, 3])), [0, 2], "{way:?}");
        assert_eq!(of(&free), [1, 3], "{way:?}");
    }
    let mut choice = fresh(Settings::default());
    for account in 0..4 {
        answers(&mut choice, account, 20, now);
    }
    choice.learn(1, failure(millis(1)), now + millis(5000));
    assert_eq!(shares(&mut choice, 4, 10, free, now + millis(5001)), [0, 0, 0, 10], "the other is well");
    choice.learn(3, failure(millis(1)), now + millis(5002));
    assert_eq!(shares(&mut choice, 4, 10, free, now + millis(5003)), [5, 0, 5, 0]);
    answers(&mut choice, 1, 20, now + millis(15_000));
    assert_eq!(shares(&mut choice, 4, 10, free, now + millis(15_001)), [0, 10, 0, 0]);
    let mut choice = fresh(Settings::default());
    for (account, time) in [(0, 20), (1, 100), (2, 20), (3, 90)] {
        answers(&mut choice, account, time, now);
    }
    assert_eq!(shares(&mut choice, 4, 10, free, now), [5, 0, 5, 0], "more than four times as slow");
}

#[test]
fn turns_follow_the_weights_and_are_spread_evenly() {
    let now = Instant::now();
    let mut choice = choice(policy(Policy::Weighted), &[weight(5), weight(1), weight(1)]);
    let order: Vec<_> = (0..7).filter_map(|_| choice.choose(&ask(now), free)).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0], "as in nginx");
    let stream = Ask::new(Class::Stream, now);
    assert_eq!(choice.choose(&stream, free), Some(0), "each class has turns of its own");
    let full = |at: usize| Load { used: usize::from(at == 0), limit: 1 };
    assert_eq!(shares(&mut choice, 3, 10, full, now), [0, 5, 5]);
    assert_eq!(shares(&mut choice, 3, 700, free, now), [500, 100, 100], "what one could not take is not caught up on");
    let mut choice = self::choice(policy(Policy::RoundRobin), &[weight(5), weight(1), weight(1)]);
    assert_eq!(shares(&mut choice, 3, 9, free, now), [3, 3, 3]);
}

/// The endpoint of each of many keys.
fn homes(choice: &mut Choice, load: impl Fn(usize) -> Load, now: Instant) -> Vec<usize> {
    (0..20_000).map(|key| choice.choose(&keyed(mixed(key), now), &load).expect("room")).collect()
}

fn mixed(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[test]
fn a_key_keeps_its_endpoint_and_moves_only_with_it() {
    let now = Instant::now();
    let members = [weight(1), weight(1), weight(2), weight(1), weight(1)];
    let mut choice = choice(policy(Policy::Hash), &members);
    let before = homes(&mut choice, free, now);
    for (account, member) in members.iter().enumerate() {
        let count = before.iter().filter(|home| **home == account).count();
        let fair = before.len() * member.weight as usize / 6;
        assert!(count.abs_diff(fair) < fair / 20, "{account}: {count} instead of {fair}");
    }
    assert_eq!(homes(&mut choice, free, now), before);
    choice.leave(3);
    let after = homes(&mut choice, free, now);
    for (was, is) in before.iter().zip(&after) {
        assert!(was == is || *was == 3, "a key of {was} moved to {is}");
    }
    let taken: Vec<_> =
        [0, 1, 2, 4].map(|at| before.iter().zip(&after).filter(|pair| *pair == (&3, &at)).count()).into();
    assert!(taken.iter().all(|taken| *taken > 500), "{taken:?}: all share what it had");
    choice.join(3, Member { identity: 77 * 4, ..weight(1) }, None);
    assert_eq!(homes(&mut choice, free, now), before);
}

#[test]
fn a_key_spills_while_its_endpoint_is_full_or_crowded() {
    let now = Instant::now();
    let mut choice = choice(policy(Policy::Hash), &[weight(1); 4]);
    let of = |choice: &mut Choice, used: [usize; 4]| homes(choice, |at| Load { used: used[at], limit: 100 }, now);
    let quiet = of(&mut choice, [0; 4]);
    assert_eq!(of(&mut choice, [4, 0, 0, 0]), quiet, "a few at once crowd nobody");
    assert!(!of(&mut choice, [5, 0, 0, 0]).contains(&0));
    assert_eq!(of(&mut choice, [40, 20, 30, 25]), quiet);
    let crowded = of(&mut choice, [60, 20, 30, 25]);
    assert!(!crowded.contains(&0));
    assert!(quiet.iter().zip(&crowded).all(|(was, is)| was == is || *was == 0));
    assert_eq!(of(&mut choice, [100, 100, 99, 100]), vec![2; 20_000]);
    choice.learn(1, failure(millis(1)), now);
    assert!(!of(&mut choice, [0; 4]).contains(&1), "who fails is passed over too");
    answers(&mut choice, 2, 2000, now);
    assert!(of(&mut choice, [0; 4]).contains(&2), "who is slow has slow keys, perhaps");
    let key = (0..).map(mixed).zip(&quiet).find(|(_, home)| **home == 1).map(|(key, _)| key).expect("it has keys");
    let later = now + TRY_AFTER;
    assert_eq!(choice.choose(&keyed(key, later), free), Some(1), "it is tried");
    assert_ne!(choice.choose(&keyed(key, later), free), Some(1), "once");
}

#[test]
fn an_endpoint_that_is_new_takes_up_its_keys_one_by_one() {
    let now = Instant::now();
    let mut choice = choice(policy(Policy::Hash), &[weight(1); 4]);
    let before = homes(&mut choice, free, now);
    choice.come_back(2, now);
    let mut last = 0;
    for seconds in [0, 3, 6, 10] {
        let homes = homes(&mut choice, free, now + millis(seconds * 1000));
        let count = homes.iter().filter(|home| **home == 2).count();
        assert!(count > last, "{seconds} s: {count} after {last}");
        assert!(homes.iter().zip(&before).all(|(is, was)| is == was || *was == 2));
        last = count;
    }
    assert_eq!(last, before.iter().filter(|home| **home == 2).count());
}

#[test]
fn a_large_pool_is_served_by_draws() {
    let now = Instant::now();
    let count = 200;
    let mut choice = choice(Settings::default(), &vec![weight(1); count]);
    for account in 0..count {
        answers(&mut choice, account, if account < 20 { 500 } else { 20 }, now);
    }
    let shares = shares(&mut choice, count, 20_000, free, now);
    let slow: usize = shares[..20].iter().sum();
    assert!(slow < 20, "{slow}");
    assert!(shares[20..].iter().all(|share| (40..200).contains(share)), "{shares:?}");
    let full_but = |only: usize| move |at: usize| Load { used: usize::from(at != only), limit: 1 };
    assert_eq!(choice.choose(&ask(now), full_but(3)), Some(3), "the last credit is found");
}

#[test]
fn a_choice_looks_at_each_endpoint_a_few_times() {
    let now = Instant::now();
    let far = Member { is_near: false, ..weight(1) };
    for count in [2, 8, 64] {
        let members: Vec<_> = (0..count).map(|at| if at % 2 == 0 { weight(1) } else { far }).collect();
        for way in [Policy::LeastLoaded, Policy::RoundRobin, Policy::Weighted, Policy::Hash] {
            let mut choice = choice(policy(way), &members);
            for account in 0..count {
                answers(&mut choice, account, 20, now);
            }
            let looks = std::cell::Cell::new(0);
            choice.choose(&keyed(7, now), |at| {
                looks.set(looks.get() + 1);
                free(at)
            });
            assert!(looks.get() <= 6 * count, "{way:?}: {} looks at {count}", looks.get());
        }
    }
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::LeastLoaded), Just(Policy::RoundRobin), Just(Policy::Weighted), Just(Policy::Hash),]
}

proptest! {
    #[test]
    fn who_is_chosen_has_room_and_somebody_is_chosen_while_anyone_has(
        way in any_policy(),
        members in prop::collection::vec((1..9_u32, any::<bool>()), 1..80),
        steps in prop::collection::vec((0..80_usize, 0..6_u8, 0..4000_u64, any::<Option<u64>>()), 1..200),
    ) {
        let members: Vec<_> =
            members.into_iter().map(|(weight, is_near)| Member { weight, is_near, identity: 0 }).collect();
        let mut choice = choice(policy(way), &members);
        let mut credits = vec![Load { used: 0, limit: 2 }; members.len()];
        let mut now = Instant::now();
        for (account, what, time, key) in steps {
            let account = account % members.len();
            now += millis(time);
            match what {
                0 => answers(&mut choice, account, time, now),
                1 => choice.learn(account, failure(millis(time)), now),
                2 => choice.come_back(account, now),
                3 => credits[account].used = 0,
                _ => {
                    let ask = Ask { affinity: key, avoid: (what == 5).then_some(account), ..ask(now) };
                    let found = choice.choose(&ask, |at| credits[at]);
                    prop_assert_eq!(found.is_some(), credits.iter().any(|load| load.has_room()));
                    if let Some(found) = found {
                        prop_assert!(credits[found].has_room());
                        credits[found].used += 1;
                    }
                }
            }
        }
    }
}
