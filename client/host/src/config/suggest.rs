//! The name that a misspelt one likely meant.

/// The closest of `known` to `name`, if it's close enough to be meant.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(edits, _)| *edits <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many insertions, deletions, replacements and swaps of neighbours lead from one name to the other; `-` counts
/// as `_`, and case doesn't count.
fn distance(from: &str, to: &str) -> usize {
    let plain = |text: &str| -> Vec<char> {
        text.chars()
            .take(128)
            .map(|letter| {
                if letter == '-' {
                    '_'
                } else {
                    letter.to_ascii_lowercase()
                }
            })
            .collect()
    };
    let (from, to) = (plain(from), plain(to));
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=to.len()).collect();
    for (row, left) in from.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, right) in to.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX - 1);
            let mut edits = (at(&previous, column) + usize::from(left != right))
                .min(at(&previous, column + 1) + 1)
                .min(at(&current, column) + 1);
            let swapped =
                row > 0 && column > 0 && from.get(row - 1) == Some(right) && to.get(column - 1) == Some(left);
            if swapped {
                edits = edits.min(at(&before, column - 1) + 1);
            }
            current.push(edits);
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meant_name_is_found() {
        let known = [
            "store_pipeline",
            "storage_backends",
            "cache_buffer_capacity_gb",
            "http",
        ];
        for (wrong, meant) in [
            ("storage_backend", Some("storage_backends")),
            ("cache-buffer-capacity-gb", Some("cache_buffer_capacity_gb")),
            ("store_piplenie", Some("store_pipeline")),
            ("HTTP", Some("http")),
            ("completely_different", None),
            ("", None),
        ] {
            assert_eq!(closest(wrong, known), meant, "{wrong}");
        }
    }

    #[test]
    fn distances_count_edits() {
        for (from, to, edits) in [
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "", 3),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
        }
    }
}
