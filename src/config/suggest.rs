//! The nearest of some known words, for "did you mean".

/// The known word that is nearest to `word`, when it is near enough to be a typing error.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody mistypes a longer word than this, and the distance costs the product of both lengths.
    if word.len() > 64 {
        return None;
    }
    let limit = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance in which swapping two neighbours counts once.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous = None;
    for (row, here) in a.chars().enumerate() {
        let mut line = vec![row + 1];
        for (column, there) in b.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX - 1);
            let change = at(&last, column) + usize::from(here != *there);
            let mut best = change.min(at(&last, column + 1) + 1).min(at(&line, column) + 1);
            if let (Some(previous), Some(left)) = (previous, column.checked_sub(1))
                && previous == *there
                && b.get(left) == Some(&here)
            {
                best = best.min(at(&before, left) + 1);
            }
            line.push(best);
        }
        before = std::mem::replace(&mut last, line);
        previous = Some(here);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("max", "max", 0), ("maxx", "max", 1), ("tiemout", "timeout", 1), ("a", "xyz", 3)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_near_words_are_suggested() {
        let known = ["max", "timeout", "listen"];
        assert_eq!(nearest("timout", known), Some("timeout"));
        assert_eq!(nearest("maximum", known), None);
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest(&"m".repeat(100_000), known), None);
    }
}
