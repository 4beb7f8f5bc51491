// node answers.mjs PYODIDE WHEEL < scenarios.json: the answers of the wheel in Pyodide, as a browser would give them.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [pyodide, wheel] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(`${pyodide}/pyodide.mjs`).href);
process.on("uncaughtException", (error) => {
  console.error(String(error)); // and not the line of Pyodide's own script, which has a megabyte
  process.exit(1);
});
const python = await loadPyodide();
python.unpackArchive(new Uint8Array(readFileSync(wheel)), "wheel");
python.globals.set("given", readFileSync(0, "utf8"));
console.log(
  python.runPython(`
import json
from vramplan import estimate

json.dumps([estimate(**scenario).to_dict() for scenario in json.loads(given)])
`),
);
