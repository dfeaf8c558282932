//! Columns.

/// How a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table of text cells. Cells may hold colours: they take no width.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

/// Between columns: one space is too little beside right-aligned numbers.
const GAP: &str = "  ";

impl Table {
    /// With the first row: the heads of the columns.
    pub(crate) fn new<const N: usize>(heads: [(&str, Align); N]) -> Self {
        let columns = heads.iter().map(|(_, align)| *align).collect();
        Self { columns, rows: vec![heads.iter().map(|(head, _)| (*head).to_owned()).collect()] }
    }

    /// Adds a row, which has a cell in every column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into());
    }

    /// Lines, each with a newline. The last column is not filled up with spaces.
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| self.rows.iter().map(|row| width(&row[column])).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str(GAP);
                }
                let padding = " ".repeat(widths[column] - width(cell));
                match self.columns[column] {
                    Align::Left => line.extend([cell.as_str(), &padding]),
                    Align::Right => line.extend([&padding, cell.as_str()]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// In characters, without colours. Names hold ASCII, marks are one column wide.
fn width(cell: &str) -> usize {
    let mut width = 0;
    let mut rest = cell;
    while let Some(at) = rest.find("\x1b[") {
        width += rest[..at].chars().count();
        rest = rest[at..].split_once('m').map_or("", |(_, behind)| behind);
    }
    width + rest.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_heads_with_colours_too() {
        let mut table = Table::new([("step", Align::Left), ("n", Align::Right), ("worker", Align::Left)]);
        table.row(["\x1b[31mbuild\x1b[0m".to_owned(), "1".to_owned(), "east".to_owned()]);
        table.row(["a".to_owned(), "100".to_owned(), String::new()]);
        assert_eq!(table.render(), "step     n  worker\n\x1b[31mbuild\x1b[0m    1  east\na      100\n");
    }
}
