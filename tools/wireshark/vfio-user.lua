-- Wireshark dissector for vfio-user: PCI devices outside of the VMM, over a UNIX stream socket.
--
--   tshark -X lua_script:vfio-user.lua -r FILE      FILE written by `vfiobox serve --pcap FILE` (form: docs/vfio-user-capture.md)
--
-- One packet is one message behind a header of 8 bytes: version, direction, number of descriptors, connection. Link type 147 (USER0).

local proto = Proto("vfio_user", "vfio-user")

local COMMANDS = {
  [1] = "VERSION", [2] = "DMA_MAP", [3] = "DMA_UNMAP", [4] = "DEVICE_GET_INFO", [5] = "DEVICE_GET_REGION_INFO",
  [6] = "DEVICE_GET_REGION_IO_FDS", [7] = "DEVICE_GET_IRQ_INFO", [8] = "DEVICE_SET_IRQS", [9] = "REGION_READ",
  [10] = "REGION_WRITE", [11] = "DMA_READ", [12] = "DMA_WRITE", [13] = "DEVICE_RESET", [15] = "REGION_WRITE_MULTI",
  [16] = "DEVICE_FEATURE", [17] = "MIG_DATA_READ", [18] = "MIG_DATA_WRITE",
}
local REGIONS = { [0] = "BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA" }
local IRQS = { [0] = "INTX", "MSI", "MSIX", "ERR", "REQ" }
local ERRORS = {
  [1] = "EPERM", [2] = "ENOENT", [5] = "EIO", [6] = "ENXIO", [7] = "E2BIG", [9] = "EBADF", [11] = "EAGAIN", [12] = "ENOMEM",
  [13] = "EACCES", [14] = "EFAULT", [16] = "EBUSY", [17] = "EEXIST", [19] = "ENODEV", [22] = "EINVAL", [24] = "EMFILE",
  [25] = "ENOTTY", [27] = "EFBIG", [28] = "ENOSPC", [32] = "EPIPE", [34] = "ERANGE", [38] = "ENOSYS", [75] = "EOVERFLOW",
  [95] = "ENOTSUP", [104] = "ECONNRESET", [110] = "ETIMEDOUT", [125] = "ECANCELED",
}
local FEATURES = {
  [0] = "PCI_VF_TOKEN", "MIGRATION", "MIG_DEVICE_STATE", "LOW_POWER_ENTRY", "LOW_POWER_ENTRY_WITH_WAKEUP", "LOW_POWER_EXIT",
  "DMA_LOGGING_START", "DMA_LOGGING_STOP", "DMA_LOGGING_REPORT", "MIG_DATA_SIZE", "BUS_MASTER",
}
local STATES = { [0] = "ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P" }
local IO_FD_TYPES = { [0] = "ioeventfd", "ioregionfd", "shadow ioeventfd" }
local CAPABILITIES = { [1] = "SPARSE_MMAP", [2] = "TYPE", [3] = "MSIX_MAPPABLE" }

-- Fields -------------------------------------------------------------------------------------------------------------------------

local fields = {}
local function field(name, kind, label, shown, values, mask)
  local it = ProtoField[kind]("vfio_user." .. name, label, shown, values, mask)
  fields[#fields + 1] = it
  return it
end
local function flag(name, label, bit) -- one bit of a 32-bit word
  local it = ProtoField.bool("vfio_user." .. name, label, 32, nil, bit)
  fields[#fields + 1] = it
  return it
end
local function frame(name, label, kind)
  local it = ProtoField.framenum("vfio_user." .. name, label, base.NONE, kind)
  fields[#fields + 1] = it
  return it
end
local DEC, HEX = base.DEC, base.HEX

local F = {
  direction = field("direction", "uint8", "Sender", DEC, { [0] = "client", [1] = "server" }),
  fds = field("fds", "uint16", "Descriptors", DEC),
  connection = field("connection", "uint32", "Connection", DEC),

  id = field("msg_id", "uint16", "Message id", HEX),
  cmd = field("cmd", "uint16", "Command", DEC, COMMANDS),
  size = field("msg_size", "uint32", "Message size", DEC),
  flags = field("flags", "uint32", "Flags", HEX),
  kind = field("flags.type", "uint32", "Type", DEC, { [0] = "command", [1] = "reply" }, 0xf),
  no_reply = flag("flags.no_reply", "No reply wanted", 0x10),
  error = flag("flags.error", "Error", 0x20),
  errno = field("error_no", "uint32", "Error number", DEC, ERRORS),
  is_error = field("error", "none", "Refused"),
  response_in = frame("response_in", "Reply in", frametype.RESPONSE),
  response_to = frame("response_to", "Reply to", frametype.REQUEST),
  time = field("time", "relative_time", "Time since request"),
  no_response = field("no_response", "none", "No reply in this capture"),

  major = field("version.major", "uint16", "Major", DEC),
  minor = field("version.minor", "uint16", "Minor", DEC),
  json = field("version.json", "string", "JSON"),
  json_entry = field("version.capability", "string", "Capability"),

  argsz = field("argsz", "uint32", "argsz", DEC),
  data = field("data", "bytes", "Data"),
  value = field("value", "uint64", "Value", HEX),
  count64 = field("count64", "uint64", "Count", DEC),

  dma_flags = field("dma.flags", "uint32", "Flags", HEX),
  dma_read = flag("dma.flags.read", "Readable", 1),
  dma_write = flag("dma.flags.write", "Writable", 2),
  dma_mmap = flag("dma.flags.mmap", "Access by mmap", 4),
  dma_fileio = flag("dma.flags.fileio", "Access by file I/O", 8),
  unmap_dirty = flag("dma.flags.get_dirty_bitmap", "Get dirty bitmap", 1),
  unmap_all = flag("dma.flags.all", "All", 2),
  dma_offset = field("dma.offset", "uint64", "Offset in file", HEX),
  dma_addr = field("dma.addr", "uint64", "Address", HEX),
  dma_size = field("dma.size", "uint64", "Size", HEX),
  dma_count = field("dma.count", "uint64", "Count", DEC),

  dev_flags = field("device.flags", "uint32", "Flags", HEX),
  dev_reset = flag("device.flags.reset", "Can be reset", 1),
  dev_pci = flag("device.flags.pci", "PCI", 2),
  num_regions = field("device.num_regions", "uint32", "Regions", DEC),
  num_irqs = field("device.num_irqs", "uint32", "Interrupt indexes", DEC),

  region = field("region.index", "uint32", "Region", DEC, REGIONS),
  region_flags = field("region.flags", "uint32", "Flags", HEX),
  region_read = flag("region.flags.read", "Readable", 1),
  region_write = flag("region.flags.write", "Writable", 2),
  region_mmap = flag("region.flags.mmap", "Mappable", 4),
  region_caps = flag("region.flags.caps", "Has capabilities", 8),
  cap_offset = field("region.cap_offset", "uint32", "Capabilities at", DEC),
  region_size = field("region.size", "uint64", "Size", HEX),
  region_offset = field("region.offset", "uint64", "Offset in file", HEX),
  cap_id = field("region.cap.id", "uint16", "Capability", DEC, CAPABILITIES),
  cap_version = field("region.cap.version", "uint16", "Version", DEC),
  cap_next = field("region.cap.next", "uint32", "Next at", DEC),
  area_count = field("region.cap.areas", "uint32", "Areas", DEC),
  area_offset = field("region.cap.area.offset", "uint64", "Offset", HEX),
  area_size = field("region.cap.area.size", "uint64", "Size", HEX),
  type_type = field("region.cap.type", "uint32", "Type", HEX),
  type_subtype = field("region.cap.subtype", "uint32", "Subtype", HEX),

  io_flags = field("io_fds.flags", "uint32", "Flags", HEX),
  io_index = field("io_fds.index", "uint32", "Region", DEC, REGIONS),
  io_count = field("io_fds.count", "uint32", "Sub-regions", DEC),
  io_offset = field("io_fds.offset", "uint64", "Offset", HEX),
  io_size = field("io_fds.size", "uint64", "Size", DEC),
  io_fd = field("io_fds.fd_index", "uint32", "Descriptor", DEC),
  io_type = field("io_fds.type", "uint32", "Type", DEC, IO_FD_TYPES),
  io_sub_flags = field("io_fds.sub_flags", "uint32", "Flags", HEX),
  io_shadow_fd = field("io_fds.shadow_fd_index", "uint32", "Descriptor of the shadow", DEC),
  io_data = field("io_fds.datamatch", "uint64", "Data match, user data or shadow offset", HEX),

  irq = field("irq.index", "uint32", "Interrupt index", DEC, IRQS),
  irq_flags = field("irq.flags", "uint32", "Flags", HEX),
  irq_eventfd = flag("irq.flags.eventfd", "Eventfd", 1),
  irq_maskable = flag("irq.flags.maskable", "Maskable", 2),
  irq_automasked = flag("irq.flags.automasked", "Masks itself", 4),
  irq_noresize = flag("irq.flags.noresize", "Set as a whole", 8),
  irq_count = field("irq.count", "uint32", "Count", DEC),
  irq_start = field("irq.start", "uint32", "Start", DEC),
  set_flags = field("set_irqs.flags", "uint32", "Flags", HEX),
  set_none = flag("set_irqs.flags.data_none", "DATA_NONE", 1),
  set_bool = flag("set_irqs.flags.data_bool", "DATA_BOOL", 2),
  set_eventfd = flag("set_irqs.flags.data_eventfd", "DATA_EVENTFD", 4),
  set_mask = flag("set_irqs.flags.action_mask", "ACTION_MASK", 8),
  set_unmask = flag("set_irqs.flags.action_unmask", "ACTION_UNMASK", 16),
  set_trigger = flag("set_irqs.flags.action_trigger", "ACTION_TRIGGER", 32),

  access_offset = field("access.offset", "uint64", "Offset", HEX),
  access_region = field("access.region", "uint32", "Region", DEC, REGIONS),
  access_count = field("access.count", "uint32", "Count", DEC),
  write_count = field("write_multi.count", "uint64", "Writes", DEC),

  feature_flags = field("feature.flags", "uint32", "Flags", HEX),
  feature = field("feature.index", "uint32", "Feature", DEC, FEATURES, 0xffff),
  feature_get = flag("feature.get", "GET", 0x10000),
  feature_set = flag("feature.set", "SET", 0x20000),
  feature_probe = flag("feature.probe", "PROBE", 0x40000),
  mig_flags = field("migration.flags", "uint64", "Flags", HEX),
  mig_state = field("migration.state", "uint32", "State", DEC, STATES),
  mig_fd = field("migration.data_fd", "int32", "Descriptor (unused)", DEC),
  log_page_size = field("logging.page_size", "uint64", "Page size", DEC),
  log_ranges = field("logging.ranges", "uint32", "Ranges", DEC),
  log_iova = field("logging.iova", "uint64", "IOVA", HEX),
  log_length = field("logging.length", "uint64", "Length", HEX),
  log_bitmap = field("logging.bitmap", "bytes", "Bitmap"),
  mig_size = field("migration.size", "uint32", "Size", DEC),
}
proto.fields = fields

local E = {
  short = ProtoExpert.new("vfio_user.short", "Shorter than this message has to be", expert.group.PROTOCOL, expert.severity.ERROR),
  size = ProtoExpert.new("vfio_user.wrong_size", "Size does not match the message", expert.group.PROTOCOL, expert.severity.ERROR),
  unknown = ProtoExpert.new("vfio_user.unknown_command", "Unknown command", expert.group.PROTOCOL, expert.severity.WARN),
  refused = ProtoExpert.new("vfio_user.refused", "Refused", expert.group.RESPONSE_CODE, expert.severity.NOTE),
  orphan = ProtoExpert.new("vfio_user.orphan", "Reply to nothing", expert.group.SEQUENCE, expert.severity.WARN),
  json = ProtoExpert.new("vfio_user.json_unterminated", "JSON text without NUL", expert.group.PROTOCOL, expert.severity.WARN),
}
proto.experts = { E.short, E.size, E.unknown, E.refused, E.orphan, E.json }

-- Requests and replies -----------------------------------------------------------------------------------------------------------

-- What a connection's sender has asked and not been answered yet, per id in order: ids may come again before they are answered.
local open_requests, pairs_by_frame

function proto.init()
  open_requests, pairs_by_frame = {}, {}
end

local function remember(pinfo, header)
  if pinfo.visited then return pairs_by_frame[pinfo.number] end
  local asker = header.reply and 1 - header.direction or header.direction
  local key = string.format("%d/%d/%d/%d", header.connection, asker, header.id, header.cmd)
  local queue = open_requests[key]
  local pair
  if header.reply then
    pair = queue and table.remove(queue, 1)
    if pair then pair.reply = pinfo.number end
  else
    pair = { request = pinfo.number, time = pinfo.rel_ts }
    if not header.no_reply then
      if not queue then
        queue = {}
        open_requests[key] = queue
      end
      queue[#queue + 1] = pair
    end
  end
  pairs_by_frame[pinfo.number] = pair
  return pair
end

-- Payloads -----------------------------------------------------------------------------------------------------------------------

local function hex(number) return "0x" .. (number:tohex():gsub("^0+(%x)", "%1")) end
local function u64(buffer, offset) return buffer(offset, 8):le_uint64() end
local function u32(buffer, offset) return buffer(offset, 4):le_uint() end
local function add(tree, it, buffer, offset, size) return tree:add_le(it, buffer(offset, size)) end

-- A word and its bits.
local function bits(tree, word, buffer, offset, ...)
  local branch = add(tree, word, buffer, offset, 4)
  for _, bit in ipairs({ ... }) do add(branch, bit, buffer, offset, 4) end
end

local function rest(tree, buffer, offset, label)
  if buffer:len() <= offset then return end
  tree:add(F.data, buffer(offset)):append_text(label or "")
end

-- Data of 1, 2, 4 or 8 bytes is a number as well; gives its text for the summary.
local function value(tree, buffer, offset, count)
  local length = math.min(count, buffer:len() - offset)
  if length <= 0 then return "" end
  if length == 1 or length == 2 or length == 4 or length == 8 then
    local number = length == 8 and u64(buffer, offset) or UInt64(buffer(offset, length):le_uint())
    tree:add(F.data, buffer(offset, length))
    tree:add(F.value, buffer(offset, length), number)
    return " = " .. hex(number)
  end
  tree:add(F.data, buffer(offset, length))
  return ""
end

-- The members of a JSON text as "path: value" lines: enough for what VERSION holds, no judge of JSON.
local function json_lines(text)
  local lines, path, at = {}, {}, 1
  local name
  while at <= #text do
    local _, finish, quoted = text:find('^"([^"]*)"', at)
    if finish then
      local _, colon = text:find("^%s*:", finish + 1)
      if colon then
        name, at = quoted, colon + 1
      else
        lines[#lines + 1] = table.concat(path) .. (name or "") .. ": " .. quoted
        name, at = nil, finish + 1
      end
    else
      local char = text:sub(at, at)
      local _, last, plain = text:find("^([%w%.%+%-]+)", at)
      if char == "{" then
        if name then
          path[#path + 1] = name .. "."
          name = nil
        end
      elseif char == "}" then
        path[#path] = nil
      elseif last then
        lines[#lines + 1] = table.concat(path) .. (name or "") .. ": " .. plain
        name, at = nil, last
      end
      at = at + 1
    end
  end
  return lines
end

local show = {}

show[1] = function(tree, buffer, header)
  if buffer:len() < 4 then return end
  add(tree, F.major, buffer, 0, 2)
  add(tree, F.minor, buffer, 2, 2)
  local summary = string.format("%d.%d", buffer(0, 2):le_uint(), buffer(2, 2):le_uint())
  if buffer:len() > 4 then
    local text = buffer(4):string()
    local branch = tree:add(F.json, buffer(4))
    local plain = text:gsub("%z.*", "")
    if buffer(buffer:len() - 1, 1):uint() ~= 0 then branch:add_proto_expert_info(E.json) end
    for _, line in ipairs(json_lines(plain)) do
      branch:add(F.json_entry, buffer(4), (line:gsub("^capabilities%.", "")))
    end
  end
  return summary
end

show[2] = function(tree, buffer, header)
  if header.reply then return end
  add(tree, F.argsz, buffer, 0, 4)
  bits(tree, F.dma_flags, buffer, 4, F.dma_read, F.dma_write, F.dma_mmap, F.dma_fileio)
  add(tree, F.dma_offset, buffer, 8, 8)
  add(tree, F.dma_addr, buffer, 16, 8)
  add(tree, F.dma_size, buffer, 24, 8)
  local flags = u32(buffer, 4)
  local access = (flags % 2 == 1 and "r" or "-") .. (math.floor(flags / 2) % 2 == 1 and "w" or "-")
  return string.format("%s+%s %s", hex(u64(buffer, 16)), hex(u64(buffer, 24)), access)
end

show[3] = function(tree, buffer)
  add(tree, F.argsz, buffer, 0, 4)
  bits(tree, F.dma_flags, buffer, 4, F.unmap_dirty, F.unmap_all)
  add(tree, F.dma_addr, buffer, 8, 8)
  add(tree, F.dma_size, buffer, 16, 8)
  rest(tree, buffer, 24)
  return math.floor(u32(buffer, 4) / 2) % 2 == 1 and "all" or string.format("%s+%s", hex(u64(buffer, 8)), hex(u64(buffer, 16)))
end

show[4] = function(tree, buffer, header)
  add(tree, F.argsz, buffer, 0, 4)
  bits(tree, F.dev_flags, buffer, 4, F.dev_reset, F.dev_pci)
  add(tree, F.num_regions, buffer, 8, 4)
  add(tree, F.num_irqs, buffer, 12, 4)
  return header.reply and string.format("%d regions, %d interrupt indexes", u32(buffer, 8), u32(buffer, 12)) or ""
end

local function region_capabilities(tree, buffer, first)
  local at, seen = first, 0
  while at >= 32 and at + 8 <= buffer:len() and seen < 16 do
    local id, next_at = buffer(at, 2):le_uint(), u32(buffer, at + 4)
    local finish = next_at > at and math.min(next_at, buffer:len()) or buffer:len()
    local branch = add(tree, F.cap_id, buffer, at, 2)
    add(branch, F.cap_version, buffer, at + 2, 2)
    add(branch, F.cap_next, buffer, at + 4, 4)
    if id == 1 and at + 16 <= finish then
      add(branch, F.area_count, buffer, at + 8, 4)
      for i = 0, u32(buffer, at + 8) - 1 do
        local area = at + 16 + 16 * i
        if area + 16 > finish then break end
        add(branch, F.area_offset, buffer, area, 8)
        add(branch, F.area_size, buffer, area + 8, 8)
      end
    elseif id == 2 and at + 16 <= finish then
      add(branch, F.type_type, buffer, at + 8, 4)
      add(branch, F.type_subtype, buffer, at + 12, 4)
    end
    at, seen = next_at, seen + 1
  end
end

show[5] = function(tree, buffer, header)
  add(tree, F.argsz, buffer, 0, 4)
  bits(tree, F.region_flags, buffer, 4, F.region_read, F.region_write, F.region_mmap, F.region_caps)
  add(tree, F.region, buffer, 8, 4)
  add(tree, F.cap_offset, buffer, 12, 4)
  add(tree, F.region_size, buffer, 16, 8)
  add(tree, F.region_offset, buffer, 24, 8)
  local name = REGIONS[u32(buffer, 8)] or tostring(u32(buffer, 8))
  if not header.reply then return name end
  if math.floor(u32(buffer, 4) / 8) % 2 == 1 then region_capabilities(tree, buffer, u32(buffer, 12)) end
  return string.format("%s size %s", name, hex(u64(buffer, 16)))
end

show[6] = function(tree, buffer, header)
  add(tree, F.argsz, buffer, 0, 4)
  add(tree, F.io_flags, buffer, 4, 4)
  add(tree, F.io_index, buffer, 8, 4)
  add(tree, F.io_count, buffer, 12, 4)
  local name = REGIONS[u32(buffer, 8)] or tostring(u32(buffer, 8))
  for i = 0, (header.reply and u32(buffer, 12) or 0) - 1 do
    local at = 16 + 40 * i
    if at + 40 > buffer:len() then break end
    local branch = tree:add(proto, buffer(at, 40), "Sub-region " .. i)
    add(branch, F.io_offset, buffer, at, 8)
    add(branch, F.io_size, buffer, at + 8, 8)
    add(branch, F.io_fd, buffer, at + 16, 4)
    add(branch, F.io_type, buffer, at + 20, 4)
    add(branch, F.io_sub_flags, buffer, at + 24, 4)
    add(branch, F.io_shadow_fd, buffer, at + 28, 4)
    add(branch, F.io_data, buffer, at + 32, 8)
  end
  return name
end

show[7] = function(tree, buffer, header)
  add(tree, F.argsz, buffer, 0, 4)
  bits(tree, F.irq_flags, buffer, 4, F.irq_eventfd, F.irq_maskable, F.irq_automasked, F.irq_noresize)
  add(tree, F.irq, buffer, 8, 4)
  add(tree, F.irq_count, buffer, 12, 4)
  local name = IRQS[u32(buffer, 8)] or tostring(u32(buffer, 8))
  return header.reply and string.format("%s count %d", name, u32(buffer, 12)) or name
end

show[8] = function(tree, buffer, header)
  if header.reply then return end
  add(tree, F.argsz, buffer, 0, 4)
  bits(tree, F.set_flags, buffer, 4, F.set_none, F.set_bool, F.set_eventfd, F.set_mask, F.set_unmask, F.set_trigger)
  add(tree, F.irq, buffer, 8, 4)
  add(tree, F.irq_start, buffer, 12, 4)
  add(tree, F.irq_count, buffer, 16, 4)
  rest(tree, buffer, 20)
  local flags, words = u32(buffer, 4), {}
  for bit, word in ipairs({ "NONE", "BOOL", "EVENTFD", "MASK", "UNMASK", "TRIGGER" }) do
    if math.floor(flags / 2 ^ (bit - 1)) % 2 == 1 then words[#words + 1] = word end
  end
  local name = IRQS[u32(buffer, 8)] or tostring(u32(buffer, 8))
  return string.format("%s %s start %d count %d", name, table.concat(words, "|"), u32(buffer, 12), u32(buffer, 16))
end

local function region_access(tree, buffer, header, with_data)
  add(tree, F.access_offset, buffer, 0, 8)
  add(tree, F.access_region, buffer, 8, 4)
  add(tree, F.access_count, buffer, 12, 4)
  local region, count = u32(buffer, 8), u32(buffer, 12)
  local text = string.format("%s+%s %d B", REGIONS[region] or region, hex(u64(buffer, 0)), count)
  return with_data and text .. value(tree, buffer, 16, count) or text
end
show[9] = function(tree, buffer, header) return region_access(tree, buffer, header, header.reply) end
show[10] = function(tree, buffer, header) return region_access(tree, buffer, header, not header.reply) end

local function dma_access(tree, buffer, with_data)
  add(tree, F.dma_addr, buffer, 0, 8)
  add(tree, F.dma_count, buffer, 8, 8)
  local text = string.format("%s %s B", hex(u64(buffer, 0)), tostring(u64(buffer, 8)))
  return with_data and text .. value(tree, buffer, 16, buffer:len() - 16) or text
end
show[11] = function(tree, buffer, header) return dma_access(tree, buffer, header.reply) end
show[12] = function(tree, buffer, header) return dma_access(tree, buffer, not header.reply) end

show[13] = function(tree, buffer) rest(tree, buffer, 0) end

show[15] = function(tree, buffer, header)
  add(tree, F.write_count, buffer, 0, 8)
  local count = u64(buffer, 0)
  local at = 8
  while not header.reply and at + 24 <= buffer:len() do
    local branch = tree:add(proto, buffer(at, 24), "Write")
    branch:append_text(" " .. region_access(branch, buffer(at):tvb(), header, true))
    at = at + 24
  end
  return tostring(count) .. (header.reply and " done" or " writes")
end

show[16] = function(tree, buffer, header)
  add(tree, F.argsz, buffer, 0, 4)
  bits(tree, F.feature_flags, buffer, 4, F.feature, F.feature_get, F.feature_set, F.feature_probe)
  local flags = u32(buffer, 4)
  local index = flags % 65536
  local get = math.floor(flags / 0x10000) % 2 == 1
  local words = {}
  for bit, word in ipairs({ "GET", "SET", "PROBE" }) do
    if math.floor(flags / 0x10000 / 2 ^ (bit - 1)) % 2 == 1 then words[#words + 1] = word end
  end
  local length = buffer:len() - 8
  if index == 1 and length >= 8 then
    add(tree, F.mig_flags, buffer, 8, 8)
  elseif index == 2 and length >= 8 then
    add(tree, F.mig_state, buffer, 8, 4)
    add(tree, F.mig_fd, buffer, 12, 4)
    words[#words + 1] = STATES[u32(buffer, 8)]
  elseif index == 6 and length >= 16 then
    add(tree, F.log_page_size, buffer, 8, 8)
    add(tree, F.log_ranges, buffer, 16, 4)
    for at = 24, buffer:len() - 16, 16 do
      add(tree, F.log_iova, buffer, at, 8)
      add(tree, F.log_length, buffer, at + 8, 8)
    end
  elseif index == 8 and length >= 24 then
    add(tree, F.log_iova, buffer, 8, 8)
    add(tree, F.log_length, buffer, 16, 8)
    add(tree, F.log_page_size, buffer, 24, 8)
    if header.reply and get and buffer:len() > 32 then tree:add(F.log_bitmap, buffer(32)) end
  else
    rest(tree, buffer, 8)
  end
  return (FEATURES[index] or index) .. " " .. table.concat(words, " ")
end

local function migration_data(tree, buffer)
  add(tree, F.argsz, buffer, 0, 4)
  add(tree, F.mig_size, buffer, 4, 4)
  rest(tree, buffer, 8)
  return u32(buffer, 4) .. " B"
end
show[17] = migration_data
show[18] = function(tree, buffer, header)
  if not header.reply then return migration_data(tree, buffer) end
end

-- Bytes that a payload has at least, in commands and in replies without error.
local LEAST = {
  [1] = { 4, 4 }, [2] = { 32, 0 }, [3] = { 24, 24 }, [4] = { 16, 16 }, [5] = { 32, 32 }, [6] = { 16, 16 }, [7] = { 16, 16 },
  [8] = { 20, 0 }, [9] = { 16, 16 }, [10] = { 16, 16 }, [11] = { 16, 16 }, [12] = { 16, 16 }, [13] = { 0, 0 }, [15] = { 8, 8 },
  [16] = { 8, 8 }, [17] = { 8, 8 }, [18] = { 8, 0 },
}

-- Messages -----------------------------------------------------------------------------------------------------------------------

function proto.dissector(packet, pinfo, root)
  if packet:len() < 8 or packet(0, 1):uint() ~= 0 then return 0 end
  local direction = packet(1, 1):uint()
  pinfo.cols.protocol = "vfio-user"
  pinfo.cols.src = direction == 0 and "client" or "server"
  pinfo.cols.dst = direction == 0 and "server" or "client"
  local tree = root:add(proto, packet())
  local link = tree:add(proto, packet(0, 8), "Socket")
  link:add(F.direction, packet(1, 1))
  add(link, F.fds, packet, 2, 2)
  add(link, F.connection, packet, 4, 4)
  local fds = packet(2, 2):le_uint()
  local message = packet:len() > 8 and packet(8):tvb() or nil
  if message == nil or message:len() < 16 then
    tree:add_proto_expert_info(E.short)
    pinfo.cols.info = "message without a whole header"
    return packet:len()
  end

  local flags, number = u32(message, 8), u32(message, 12)
  local header = {
    direction = direction,
    connection = packet(4, 4):le_uint(),
    id = message(0, 2):le_uint(),
    cmd = message(2, 2):le_uint(),
    size = u32(message, 4),
    reply = flags % 16 == 1,
    no_reply = math.floor(flags / 16) % 2 == 1,
    failed = math.floor(flags / 32) % 2 == 1,
  }
  local pair = remember(pinfo, header)

  local head = tree:add(proto, message(0, 16), "Header")
  add(head, F.id, message, 0, 2)
  local command = add(head, F.cmd, message, 2, 2)
  local size = add(head, F.size, message, 4, 4)
  bits(head, F.flags, message, 8, F.kind, F.no_reply, F.error)
  add(head, F.errno, message, 12, 4)
  -- A cut capture is no wrong size.
  if header.size ~= packet:reported_len() - 8 then size:add_proto_expert_info(E.size) end

  local name = COMMANDS[header.cmd]
  if name == nil then command:add_proto_expert_info(E.unknown) end
  local info = string.format("%s%s", name or "command " .. header.cmd, header.reply and " reply" or "")
  if header.reply then
    if pair and pair.reply == pinfo.number then
      tree:add(F.response_to, message(0, 2), pair.request):set_generated()
      local took = pinfo.rel_ts - pair.time
      tree:add(F.time, message(0, 2), NSTime.new(math.floor(took), math.floor(took % 1 * 1e9 + 0.5))):set_generated()
    else
      tree:add_proto_expert_info(E.orphan)
    end
  elseif pair and pair.reply then
    tree:add(F.response_in, message(0, 2), pair.reply):set_generated()
  elseif not header.no_reply and pinfo.visited then
    tree:add(F.no_response, message(0, 2)):set_generated()
  end

  if header.failed then
    tree:add(F.is_error, message(8, 8)):set_generated()
    info = info .. " " .. (ERRORS[number] or "error " .. number)
    tree:add_proto_expert_info(E.refused, info)
  else
    local least = LEAST[header.cmd]
    if least and message:len() - 16 < least[header.reply and 2 or 1] then
      tree:add_proto_expert_info(E.short)
      info = info .. " (short)"
    elseif message:len() > 16 then
      local payload = message(16):tvb()
      if name then
        local text = show[header.cmd](tree:add(proto, message(16), name), payload, header)
        if text and text ~= "" then info = info .. " " .. text end
      else
        rest(tree, payload, 0)
      end
    end
  end
  if header.no_reply then info = info .. " (posted)" end
  if fds > 0 then info = info .. string.format(" [%d fd%s]", fds, fds > 1 and "s" or "") end
  pinfo.cols.info = info
  tree:append_text(", " .. info)
  return packet:len()
end

DissectorTable.get("wtap_encap"):add((wtap or wtap_encaps).USER0 or 45, proto)
