// bench/peer_text.h: strings between the processes of one benchmark, over a socket.
#pragma once

#include <string>

namespace switchyard {

// False if the other end has gone.
bool SendText(int fd, const std::string& text);
// Empty at the end; 1 MiB at most.
std::string ReceiveText(int fd);

}  // namespace switchyard
