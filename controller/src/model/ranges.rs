//! Lists of numbers like `1-4,7`.

use std::collections::BTreeSet;

use super::Problem;

/// Reads a list of numbers between `least` and `most`.
pub(crate) fn parse(text: &str, least: u16, most: u16) -> Result<BTreeSet<u16>, Problem> {
    let wrong = || {
        Problem::invalid(
            format_args!("{text:?} is no list of numbers from {least} to {most}"),
            "write it like 100-199,300",
        )
    };
    let mut numbers = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_not_one| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first < least || last > most || first > last {
            return Err(wrong());
        }
        numbers.extend(first..=last);
    }
    Ok(numbers)
}

/// The runs of a set, first and last of each.
pub(crate) fn runs(numbers: &BTreeSet<u16>) -> Vec<(u16, u16)> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    runs
}

/// Writes a set in its shortest form.
pub(crate) fn text(numbers: &BTreeSet<u16>) -> String {
    let parts: Vec<_> = runs(numbers)
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_in_their_shortest_form() {
        let numbers = parse("3,1-2,7,9-9", 1, 10).unwrap();
        assert_eq!(text(&numbers), "1-3,7,9");
        for wrong in ["", "0", "11", "3-2", "a", "1,,2", "1-"] {
            assert!(parse(wrong, 1, 10).is_err(), "{wrong}");
        }
    }
}
