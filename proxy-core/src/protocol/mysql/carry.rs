//! Temporary tables on their way from one server connection to another: what they are and what is in them, read where
//! they are, and how they are made again.
//!
//! Only what comes out the same is taken along: `InnoDB` tables, whose rows keep their order, without generated columns,
//! of types whose values have a literal each. Whether it did come out the same is seen where the tables are made again,
//! by their definitions and checksums. Only MariaDB has all that is used here; elsewhere nothing is taken along.
//! Source: MariaDB knowledge base, "SHOW CREATE TABLE", "CHECKSUM TABLE", "GROUP_CONCAT".

use super::{
    super::{Errand, Packing, Step},
    query::quoted,
};

/// Longest query while tables are read, in seconds: clients wait meanwhile, this one among them.
const READING_SECONDS: u32 = 2;
/// Most rows of one table, and most tables.
const MOST_ROWS: usize = 10_000;
const MOST_TABLES: usize = 16;

/// How a statement begins that makes a table again.
pub(super) const MAKE: &str = "CREATE TEMPORARY TABLE ";

/// As a part of an SQL expression: what takes [`neutral`] back.
const TAKES_BACK: &str = "'sql_mode=''', @@sql_mode, ''', time_zone=''', @@time_zone, \
    ''', innodb_strict_mode=', @@innodb_strict_mode, ', check_constraint_checks=', @@check_constraint_checks, \
    ', group_concat_max_len=', @@group_concat_max_len, ', sql_quote_show_create=', @@sql_quote_show_create, \
    ', auto_increment_increment=', @@auto_increment_increment, \
    ', auto_increment_offset=', @@auto_increment_offset, ', tx_read_only=', @@tx_read_only, \
    ', max_statement_time=', @@max_statement_time, ', autocommit=', @@autocommit)";

/// Asks a session whose tables are to be read: the statement that takes [`neutral`] back; how long packets may be; how
/// many temporary tables statements have made since it was as after login, those in triggers and functions among them;
/// and whether text comes and goes in the character set that is wanted here. Should it not, there would be no taking that
/// back: the collation of results can be set and not read.
fn ask_session() -> String {
    format!(
        "SELECT CONCAT('SET ', {TAKES_BACK}, @@max_allowed_packet, (SELECT variable_value FROM \
         information_schema.session_status WHERE variable_name = 'Com_create_temporary_table'), \
         @@character_set_client = 'utf8mb4' AND @@character_set_connection = 'utf8mb4' \
         AND @@character_set_results <=> 'utf8mb4'"
    )
}

/// Asks a session that is as after login for the statement that takes [`NAMES`] and [`neutral`] back. There all that
/// `NAMES` sets has come from one collation.
fn ask_new_session() -> String {
    format!(
        "SELECT CONCAT('SET NAMES ', @@character_set_client, ' COLLATE ', @@collation_connection, ', ', {TAKES_BACK}"
    )
}

/// First of what makes a session neutral, so that what follows is read in this character set.
const NAMES: &str = "SET NAMES utf8mb4";

/// Under this, and [`NAMES`], values are read and written as they are. `seconds` is the longest for a query, 0 for no limit.
fn neutral(most_bytes: usize, seconds: u32) -> String {
    format!(
        "SET sql_mode='NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES', time_zone='+00:00', innodb_strict_mode=OFF, \
         check_constraint_checks=OFF, group_concat_max_len={}, sql_quote_show_create=ON, \
         auto_increment_increment=1, auto_increment_offset=1, tx_read_only=OFF, max_statement_time={seconds}, \
         autocommit=ON",
        most_bytes + 1
    )
}

/// One temporary table.
#[derive(Debug)]
struct Table {
    schema: String,
    name: String,
}

impl Table {
    fn path(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// What its definition begins with.
    fn front(&self) -> String {
        format!("{MAKE}{}", quoted(&self.name))
    }
}

/// A column, and the SQL expression that gives a literal of its value.
#[derive(Debug, PartialEq, Eq)]
struct Column {
    name: String,
    literal: String,
    /// Its values may be longer than a line.
    is_text: bool,
}

/// Beside what a table comes to, what a statement or an answer may have.
const PACKET_MARGIN: usize = 4096;

/// What is known of a table by its definition.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    columns: Vec<Column>,
    /// The column that is numbered by itself, and its next number.
    numbered: Option<(String, i128)>,
}

/// Reads the definition that the server gives of a table; `None` where a column, or anything else, is not certain to come
/// out the same.
fn read_definition(table: &Table, definition: &str) -> Option<Known> {
    let body = definition.strip_prefix(&table.front())?.strip_prefix(" (\n")?;
    let (body, options) = body.rsplit_once("\n) ENGINE=InnoDB")?;
    if definition.contains('\u{fffd}')
        || options.contains('\n')
        || ["SEQUENCE=", " DIRECTORY=", "VERSIONING", "/*"].iter().any(|no| options.contains(no))
    {
        return None;
    }
    let next = match options.split_once(" AUTO_INCREMENT=") {
        Some((_, rest)) => rest.split(' ').next()?.parse().ok()?,
        None => 1,
    };
    let mut known = Known::default();
    for line in body.split('\n') {
        let line = line.strip_prefix("  ")?;
        if !line.starts_with('`') {
            let is_known = ["PRIMARY KEY ", "UNIQUE KEY ", "KEY ", "CONSTRAINT "]
                .iter()
                .any(|key| line.starts_with(key));
            (is_known && is_plain(line)).then_some(())?;
            continue;
        }
        is_plain(line).then_some(())?;
        let column = column(line)?;
        if line.split('\'').next().is_some_and(|front| front.contains(" AUTO_INCREMENT")) {
            known.numbered = Some((column.name.clone(), next));
        }
        known.columns.push(column);
    }
    (!known.columns.is_empty()).then_some(known)
}

/// Nothing in a line of a definition is computed, be it only in a comment, nor read under settings of when it was made:
/// literals within expressions have the character set of the session that wrote them.
fn is_plain(line: &str) -> bool {
    let default = line.split_once(" DEFAULT ").is_none_or(|(_, value)| {
        ["NULL", "'", "b'", "current_timestamp(", "-"].iter().any(|front| value.starts_with(front))
            || value.starts_with(|c: char| c.is_ascii_digit())
    });
    let check = line.split_once(" CHECK ").is_none_or(|(_, condition)| !condition.contains('\''));
    // What the server does not know stands in a comment of this kind.
    default && check && ![" AS ", "/*"].iter().any(|no| line.contains(no))
}

/// Shape: `name` type …
fn column(line: &str) -> Option<Column> {
    let mut end = 1;
    loop {
        end += line.get(end..)?.find('`')? + 1;
        match line.get(end..)?.strip_prefix('`') {
            Some(_) => end += 1,
            None => break,
        }
    }
    let (name, rest) = line.split_at_checked(end)?;
    let word = rest.strip_prefix(' ')?.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    // Members that are no text are shown as question marks; a year of two digits does not tell 0 from 2000.
    if matches!(word, "enum" | "set") && rest.contains(" CHARACTER SET binary")
        || rest.starts_with(" year(2)")
        // Which default it has without a word depends on a setting.
        || (word == "timestamp" && !rest.contains(" DEFAULT "))
    {
        return None;
    }
    // The length is more than any of them has: the server takes what they have at most from their types, and errs.
    let text = |value: &str| format!("CAST({value} AS CHAR(400))");
    let literal = match word {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "double" | "year" => text(name),
        // Its own text has six digits.
        "float" => text(&format!("CAST({name} AS DOUBLE)")),
        "bit" | "enum" | "set" => text(&format!("CAST({name} AS UNSIGNED)")),
        "date" | "time" | "datetime" | "timestamp" | "uuid" | "inet4" | "inet6" => {
            format!("CONCAT('''', {}, '''')", text(name))
        }
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "binary" | "varbinary"
        | "tinyblob" | "blob" | "mediumblob" | "longblob" => format!("CONCAT('x''', HEX({name}), '''')"),
        _ => return None,
    };
    let is_text = literal.contains("HEX(");
    Some(Column { name: name.to_owned(), literal: format!("COALESCE({literal}, 'NULL')"), is_text })
}

/// What the last question was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Settings,
    Neutral,
    Definition,
    Count,
    Size,
    Rows,
    Checksum,
    Back,
}

/// See [`Packing`].
#[derive(Debug)]
pub(super) struct Tables {
    tables: Vec<Table>,
    /// Which of them is read.
    at: usize,
    /// Tables that texts have made.
    made: u64,
    asked: Asked,
    /// Of statements that make the tables again.
    most_bytes: usize,
    bytes: usize,
    take_back: String,
    definition: String,
    known: Known,
    errands: Vec<Errand>,
    fits: bool,
}

impl Tables {
    /// `tables`: schema and name each; `made`: how many texts have made here since the last reset, dropped or not. `None`
    /// where that is known beforehand to be in vain.
    pub(super) fn new(tables: &[(&[u8], &[u8])], made: u64, most_bytes: usize) -> Option<Self> {
        // Others would have to be read as the client writes them.
        let ascii = |name: &[u8]| {
            let name = std::str::from_utf8(name).ok().filter(|name| name.is_ascii() && !name.is_empty())?;
            Some(name.to_owned())
        };
        let tables: Option<Vec<Table>> = tables
            .iter()
            .map(|(schema, name)| Some(Table { schema: ascii(schema)?, name: ascii(name)? }))
            .collect();
        let tables = tables.filter(|tables| !tables.is_empty() && tables.len() <= MOST_TABLES)?;
        Some(Self {
            tables,
            at: 0,
            made,
            asked: Asked::Nothing,
            most_bytes,
            bytes: 0,
            take_back: String::new(),
            definition: String::new(),
            known: Known::default(),
            errands: Vec::new(),
            fits: true,
        })
    }

    fn ask(&mut self, about: Asked) -> Step {
        self.asked = about;
        let Some(table) = self.tables.get(self.at) else {
            self.asked = Asked::Back;
            return Step::Ask(self.take_back.clone());
        };
        let path = table.path();
        Step::Ask(match about {
            Asked::Nothing | Asked::Settings => ask_session(),
            Asked::Neutral => neutral(self.most_bytes, READING_SECONDS),
            Asked::Definition => format!("SHOW CREATE TABLE {path}"),
            Asked::Count => {
                format!("SELECT COUNT(*) FROM (SELECT 1 FROM {path} LIMIT {}) AS t", MOST_ROWS + 1)
            }
            Asked::Size => {
                let texts = self.known.columns.iter().filter(|column| column.is_text);
                let sizes: String =
                    texts.map(|one| format!(" + COALESCE(OCTET_LENGTH({}), 0)", one.name)).collect();
                let most = match &self.known.numbered {
                    Some((name, _)) => format!("COALESCE(MAX({name}), 0)"),
                    None => "0".to_owned(),
                };
                format!("SELECT COALESCE(SUM(0{sizes}), 0), {most} FROM {path}")
            }
            Asked::Rows => {
                let literals: Vec<&str> = self.known.columns.iter().map(|column| &*column.literal).collect();
                let row = format!("CONCAT('(', {}, ')')", literals.join(", ',', "));
                // An index that has all columns would give the rows in its own order.
                format!(
                    "SELECT COUNT(*), COUNT(IF({row} LIKE '%)', 1, NULL)), GROUP_CONCAT({row} SEPARATOR ',') \
                     FROM {path} USE INDEX ()"
                )
            }
            Asked::Checksum => format!("CHECKSUM TABLE {path}"),
            Asked::Back => self.take_back.clone(),
        })
    }

    /// Gives up; what was changed is taken back first.
    fn unfit(&mut self) -> Step {
        self.fits = false;
        match self.asked {
            Asked::Nothing | Asked::Settings | Asked::Back => Step::Unfit,
            _ => self.ask(Asked::Back),
        }
    }

    fn add(&mut self, errand: Errand) -> bool {
        self.bytes += errand.bytes();
        self.errands.push(errand);
        self.bytes <= self.most_bytes
    }

    /// Takes in an answer. What is to be asked next; `None` where that need not be.
    fn take(&mut self, row: &[String]) -> Option<Asked> {
        let table = self.tables.get(self.at);
        let number = |at: usize| row.get(at).and_then(|number| number.parse::<usize>().ok());
        Some(match self.asked {
            Asked::Nothing => Asked::Settings,
            Asked::Settings => {
                // Values, statements and answers would be cut off.
                number(1).filter(|packet| *packet >= self.most_bytes + PACKET_MARGIN)?;
                // Code that no text shows may have made others.
                row.get(2)?.parse::<u64>().ok().filter(|made| *made == self.made)?;
                row.get(3).filter(|reads| *reads == "1")?;
                self.take_back = row.first().filter(|text| text.starts_with("SET sql_mode="))?.clone();
                let neutral = Errand::Run(neutral(self.most_bytes, 0));
                let begin = [Errand::Remember(ask_new_session()), Errand::Run(NAMES.to_owned()), neutral];
                begin.into_iter().all(|errand| self.add(errand)).then_some(Asked::Neutral)?
            }
            Asked::Neutral => Asked::Definition,
            Asked::Definition => {
                let definition = row.get(1)?;
                let table = table?;
                self.known = read_definition(table, definition)?;
                self.definition.clone_from(definition);
                let body = definition.strip_prefix(&table.front())?;
                let make = format!("{MAKE}{}{body}", table.path());
                self.add(Errand::Run(make)).then_some(Asked::Count)?
            }
            Asked::Count => number(0).filter(|rows| *rows <= MOST_ROWS).map(|_| Asked::Size)?,
            Asked::Size => {
                number(0).filter(|bytes| 2 * bytes <= self.most_bytes)?;
                let most: i128 = row.get(1)?.parse().ok()?;
                // A number beyond the next, put there by hand, would move that.
                let keeps = self.known.numbered.as_ref().is_none_or(|(_, next)| most < *next);
                keeps.then_some(Asked::Rows)?
            }
            Asked::Rows => {
                let path = table?.path();
                let [all, read, rows] = row else { return None };
                let is_whole = all == read && (all == "0") == rows.is_empty();
                (is_whole && rows.len() <= self.most_bytes).then_some(())?;
                let names: Vec<&str> = self.known.columns.iter().map(|column| &*column.name).collect();
                let insert = format!("INSERT INTO {path} ({}) VALUES {rows}", names.join(","));
                (all == "0" || self.add(Errand::Run(insert))).then_some(Asked::Checksum)?
            }
            Asked::Checksum => {
                let table = table?;
                row.get(1).filter(|sum| sum.parse::<u64>().is_ok())?;
                let path = table.path();
                let definition = vec![table.name.clone(), std::mem::take(&mut self.definition)];
                let looks = Errand::Expect(format!("SHOW CREATE TABLE {path}"), definition);
                let holds = Errand::Expect(format!("CHECKSUM TABLE {path}"), row.to_vec());
                (self.add(looks) && self.add(holds)).then_some(())?;
                self.at += 1;
                if self.at == self.tables.len() { Asked::Back } else { Asked::Definition }
            }
            Asked::Back => return None,
        })
    }
}

impl Packing for Tables {
    fn next(&mut self, answer: Option<&[String]>, time: bool) -> Step {
        match (self.asked, answer) {
            // What could not be taken back is not known.
            (Asked::Back, None) => Step::Lost,
            (Asked::Back, Some(_)) if self.fits => {
                self.errands.push(Errand::Recall);
                Step::Done(std::mem::take(&mut self.errands))
            }
            (Asked::Back, Some(_)) => Step::Unfit,
            (Asked::Nothing, _) => self.ask(Asked::Settings),
            (_, Some(row)) if time => match self.take(row) {
                Some(next) => self.ask(next),
                None => self.unfit(),
            },
            (_, _) => self.unfit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFINITION: &str = "CREATE TEMPORARY TABLE `t` (\n  `a` int(11) NOT NULL AUTO_INCREMENT,\n  \
        `b``c` float DEFAULT NULL,\n  `d e` varchar(20) DEFAULT 'it''s, `x`',\n  PRIMARY KEY (`a`),\n  \
        KEY `k` (`d e`)\n) ENGINE=InnoDB DEFAULT CHARSET=latin1 COLLATE=latin1_swedish_ci";

    fn table() -> Table {
        Table { schema: "s".into(), name: "t".into() }
    }

    fn names(definition: &str) -> Option<Vec<String>> {
        let known = read_definition(&table(), definition)?;
        Some(known.columns.into_iter().map(|column| column.name).collect())
    }

    #[test]
    fn columns_are_read_from_the_definition() {
        assert_eq!(names(DEFINITION), Some(vec!["`a`".into(), "`b``c`".into(), "`d e`".into()]));
        let numbered =
            |definition: &str| read_definition(&table(), definition).and_then(|known| known.numbered);
        assert_eq!(numbered(DEFINITION), Some(("`a`".into(), 1)));
        let later = DEFINITION.replace("InnoDB ", "InnoDB AUTO_INCREMENT=7 ");
        assert_eq!(numbered(&later), Some(("`a`".into(), 7)));
        assert_eq!(numbered(&DEFINITION.replace(" AUTO_INCREMENT", "")), None);
    }

    #[test]
    fn what_may_come_out_otherwise_is_not_taken_along() {
        for (from, to) in [
            ("InnoDB", "MEMORY"),
            ("TEMPORARY TABLE", "TABLE"),
            ("`t` (", "`T` ("),
            ("int(11)", "point"),
            ("DEFAULT NULL", "GENERATED ALWAYS AS (1) STORED"),
            ("KEY `k`", "FULLTEXT KEY `k`"),
            ("  KEY `k`", "KEY `k`"),
            ("CHARSET=latin1", "CHARSET=latin1 SEQUENCE=1"),
            ("_ci", "_ci\n PARTITION BY KEY ()"),
            ("`d e`", "`d\ne`"),
            ("'it''s, `x`'", "concat('é')"),
            ("'it''s, `x`'", "'\u{fffd}'"),
            ("NOT NULL", "CHECK (`a` <> 'a')"),
            ("KEY `k` (`d e`)", "CONSTRAINT `c` CHECK (`a` <> 'a')"),
            ("varchar(20)", "enum('a','?') CHARACTER SET binary"),
            ("int(11)", "year(2)"),
            ("int(11)", "timestamp"),
            ("float", "float /* `X`=1 */"),
        ] {
            let definition = DEFINITION.replacen(from, to, 1);
            assert_ne!(definition, DEFINITION, "{from}");
            assert_eq!(names(&definition), None, "{definition}");
        }
    }

    /// Answers questions as a server would, by what they begin with.
    fn pack(answers: &[(&str, &[&str])], most_bytes: usize) -> (Vec<String>, Step) {
        let mut tables = Tables::new(&[(b"s", b"t")], 1, most_bytes).expect("one plain name");
        let mut asked = Vec::new();
        let mut answer: Option<Vec<String>> = None;
        loop {
            match tables.next(answer.as_deref(), true) {
                Step::Ask(question) => {
                    let found = answers.iter().find(|(front, _)| question.starts_with(front));
                    answer = found.map(|(_, row)| row.iter().map(|one| (*one).to_owned()).collect());
                    asked.push(question);
                }
                step => return (asked, step),
            }
        }
    }

    const ANSWERS: [(&str, &[&str]); 7] = [
        ("SELECT CONCAT('SET", &["SET sql_mode='', before", "1000000", "1", "1"]),
        ("SET ", &[]),
        ("SHOW CREATE", &["t", DEFINITION]),
        ("SELECT COUNT(*) FROM (", &["1"]),
        ("SELECT COALESCE(SUM", &["5", "0"]),
        ("SELECT COUNT(*), COUNT(", &["1", "1", "(1,2,x'00')"]),
        ("CHECKSUM", &["s.t", "77"]),
    ];

    #[test]
    fn a_table_is_packed_and_the_session_left_as_it_was() {
        let (asked, step) = pack(&ANSWERS, 64 * 1024);
        assert_eq!(asked.last().map(String::as_str), Some("SET sql_mode='', before"));
        let Step::Done(errands) = step else { panic!("{step:?}") };
        let [
            Errand::Remember(_),
            Errand::Run(_),
            Errand::Run(_),
            Errand::Run(make),
            Errand::Run(fill),
            rest @ ..,
        ] = &errands[..]
        else {
            panic!("{errands:?}")
        };
        assert!(make.starts_with("CREATE TEMPORARY TABLE `s`.`t` (\n"), "{make}");
        assert_eq!(fill, "INSERT INTO `s`.`t` (`a`,`b``c`,`d e`) VALUES (1,2,x'00')");
        assert!(matches!(rest, [Errand::Expect(..), Errand::Expect(..), Errand::Recall]), "{rest:?}");
    }

    #[test]
    fn whatever_goes_wrong_the_session_is_as_it_was() {
        for (front, row) in [
            ("SHOW CREATE", Some(&["t"][..])),
            ("SHOW CREATE", None),
            ("SELECT COUNT(*) FROM (", Some(&["10001"])),
            ("SELECT COALESCE(SUM", Some(&["40000", "0"])),
            ("SELECT COALESCE(SUM", Some(&["5", "1"])),
            ("SELECT COUNT(*), COUNT(", Some(&["1", "1", ""])),
            ("SELECT COUNT(*), COUNT(", Some(&["2", "1", "(1,2,x'00')"])),
            ("SELECT COUNT(*), COUNT(", None),
            ("CHECKSUM", Some(&["s.t", ""])),
        ] {
            let mut answers = ANSWERS.to_vec();
            answers.retain(|(known, _)| *known != front);
            answers.extend(row.map(|row| (front, row)));
            let (asked, step) = pack(&answers, 64 * 1024);
            assert!(matches!(step, Step::Unfit), "{front}: {step:?}");
            assert_eq!(asked.last().map(String::as_str), Some("SET sql_mode='', before"), "{front}");
        }
        assert!(matches!(pack(&ANSWERS, 100).1, Step::Unfit));
        assert!(matches!(pack(&ANSWERS, 1_000_000).1, Step::Unfit), "packets are too small");
        assert!(matches!(pack(&ANSWERS[1..], 64 * 1024).1, Step::Unfit), "no MariaDB");
        let mut hidden = ANSWERS.to_vec();
        hidden[0].1 = &["SET sql_mode='', before", "1000000", "2", "1"];
        assert!(matches!(pack(&hidden, 64 * 1024).1, Step::Unfit), "something else has made one");
        hidden[0].1 = &["SET sql_mode='', before", "1000000", "1", "0"];
        assert!(matches!(pack(&hidden, 64 * 1024).1, Step::Unfit), "it reads text otherwise");
        let mut lost = ANSWERS.to_vec();
        lost[1] = ("SET sql_mode='NO", &[]);
        assert!(matches!(pack(&lost, 64 * 1024).1, Step::Lost), "it cannot be taken back");
        let mut tables = Tables::new(&[(b"s", b"t")], 1, 64 * 1024).expect("one plain name");
        assert!(matches!(tables.next(None, true), Step::Ask(_)));
        let before = ANSWERS[0].1.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        assert!(matches!(tables.next(Some(&before), true), Step::Ask(_)));
        let Step::Ask(back) = tables.next(Some(&[]), false) else { panic!("it is changed") };
        assert_eq!(back, "SET sql_mode='', before", "no time is left");
        assert!(matches!(tables.next(Some(&[]), false), Step::Unfit));
    }

    #[test]
    fn names_that_depend_on_the_clients_character_set_are_not_taken_along() {
        for (schema, name) in [(&b"s"[..], "é".as_bytes()), (b"", b"t"), (b"s", b"\xe9")] {
            assert!(Tables::new(&[(schema, name)], 1, 1024).is_none(), "{name:?}");
        }
    }
}
