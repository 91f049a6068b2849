//! Columns of text.

use std::fmt::Write;

/// Whether a terminal will show colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Off,
    On,
}

/// What a cell says beyond its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Heading,
    Good,
    Bad,
}

impl Style {
    pub(crate) fn paint(self, text: &str, colour: Colour) -> String {
        let code = match (colour, self) {
            (Colour::Off, _) | (_, Self::Plain) => return text.to_owned(),
            (_, Self::Heading) => 1,
            (_, Self::Good) => 32,
            (_, Self::Bad) => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

pub(crate) type Cell = (String, Style);

/// Rows of cells, each column as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    /// `<` or `>` for each column.
    align: &'static str,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// `align`: for each column `<`, left, or `>`, right.
    pub(crate) fn new(align: &'static str) -> Self {
        Self { align, rows: Vec::new() }
    }

    pub(crate) fn heading<S: Into<String>>(mut self, cells: impl IntoIterator<Item = S>) -> Self {
        self.rows.push(cells.into_iter().map(|cell| (cell.into(), Style::Heading)).collect());
        self
    }

    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.styled(cells.into_iter().map(|cell| (cell.into(), Style::Plain)));
    }

    pub(crate) fn styled(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Lines that end with a newline each.
    pub(crate) fn text(&self, colour: Colour) -> String {
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|(text, _): &Cell| text.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..self.align.len()).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            for (column, ((text, style), align)) in row.iter().zip(self.align.chars()).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let room = " ".repeat(widths[column] - text.chars().count());
                let text = style.paint(text, colour);
                let _ = match align {
                    '>' => write!(out, "{gap}{room}{text}"),
                    _ => write!(out, "{gap}{text}{room}"),
                };
            }
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        }
        out
    }
}

/// `1 234 567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
    }

    #[test]
    fn columns_line_up_with_and_without_colours() {
        let mut table = Table::new("<><").heading(["arm", "p50", "note"]);
        table.row(["grün", "2.81 ms", ""]);
        table.styled([
            ("b".to_owned(), Style::Plain),
            ("9 µs".to_owned(), Style::Bad),
            ("late".to_owned(), Style::Plain),
        ]);
        assert_eq!(table.text(Colour::Off), "arm       p50  note\ngrün  2.81 ms\nb        9 µs  late\n");
        assert!(table.text(Colour::On).contains("   \x1b[31m9 µs\x1b[0m  late\n"));
    }
}
