// A board without its wires: runs a program in MicroPython.
//
//     node board.mjs micropython.mjs program.py fog_config.py=/path/to/it umqtt/simple.py=/path/to/it

import { readFileSync } from "node:fs";

const [interpreter, program, ...modules] = process.argv.slice(2);
const { loadMicroPython } = await import(interpreter);
const board = await loadMicroPython({ stdout: (line) => console.log(line) });

board.FS.mkdir("/lib");
board.FS.mkdir("/lib/umqtt");
for (const module of modules) {
  const [name, source] = module.split("=");
  board.FS.writeFile(`/lib/${name}`, readFileSync(source, "utf8"));
}
board.runPython("import sys; sys.path.append('/lib')");
board.runPython(readFileSync(program, "utf8"));
